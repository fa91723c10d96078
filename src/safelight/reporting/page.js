(function () {
  var root = document.documentElement, button = document.getElementById("theme");
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  function now() { return root.dataset.theme || (dark.matches ? "dark" : "light"); }
  function show() { button.textContent = now() === "dark" ? "Light" : "Dark"; button.setAttribute("aria-label", "Switch to " + button.textContent.toLowerCase() + " colours"); }
  button.hidden = false;
  button.addEventListener("click", function () { root.dataset.theme = now() === "dark" ? "light" : "dark"; show(); });
  dark.addEventListener("change", show);
  show();
})();
