"""How the embedded model was made, and is made again: see docs/from-nothing.md. From a checkout, and no part of the installed library."""
