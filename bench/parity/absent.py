"""Why node classes of ComfyUI's are not here, and what of those that are here is meant to differ."""
from __future__ import annotations

VIDEO = "video"
HOOKS = "LoRAs on a part of the way or of the prompts: use areas, ranges and `with_lora`"

SCOPE = {
    "nodes_ace": "sound",
    "nodes_camera_trajectory": VIDEO, "nodes_chroma_radiance": "Chroma is not read", "nodes_context_windows": VIDEO, "nodes_cosmos": VIDEO,
    "nodes_easycache": "skips steps' work by guesses",
    "nodes_edit_model": "FLUX Kontext and its like, which draw from pictures, are not read",
    "nodes_flux": "FLUX is not read", "nodes_hidream": "HiDream is not read", "nodes_hooks": HOOKS,
    "nodes_hunyuan": "Hunyuan's networks are not read",
    "nodes_hunyuan3d": "shapes",
    "nodes_load_3d": "shapes",
    "nodes_lotus": "Lotus (depth by diffusion) is not read", "nodes_lt": VIDEO, "nodes_lumina2": "Lumina 2 is not read",
    "nodes_mochi": VIDEO, "nodes_model_merging_model_specific": "shares for the blocks of families that are not read",
    "nodes_model_patch": "patches of Qwen Image and FLUX, which are not read", "nodes_perpneg": "deprecated; PerpNegGuider is here",
    "nodes_photomaker": "PhotoMaker is not read", "nodes_pixart": "PixArt is not read", "nodes_qwen": "Qwen Image is not read",
    "nodes_sdupscale": "SD 2's upscaling network, which is shown a small picture, is not read",
    "nodes_stable3d": "shapes",
    "nodes_stable_cascade": "Stable Cascade is not read",
    "nodes_video": VIDEO, "nodes_video_model": VIDEO, "nodes_wan": VIDEO, "nodes_webcam": "the browser's camera",
    "nodes_optimalsteps": "tables for FLUX, Wan and Chroma, which are not read",
    "nodes_model_downscale": "shrinks what is inside a U-Net; no patch of ours does",
    "nodes_torch_compile": "`safelight` compiles by its own setting",
    "nodes_gits": "its tables are not here",
}
WHY = {
    "SaveSVGNode": "drawings",
    "ModelSamplingStableCascade": "Stable Cascade is not read",
    "ModelComputeDtype": "the precision is the run's (`--dtype`)",
    "SamplerLCMUpscale": "a sampler that changes the size on the way",
    "CLIPTextEncodeControlnet": "a ControlNet with prompts of its own is not read",
    "T5TokenizerOptions": "how far T5's words are padded is the family's own",
    "ControlNetInpaintingAliMamaApply": "no mask is given to a ControlNet; SD 3's inpainting one is shown that all is kept",
    "ConditioningTimestepsRange": "a range that only hooks take",
}
EXTRA = {"Canny": "nodes_canny", "Morphology": "nodes_morphology", "ImageRGBToYUV": "nodes_morphology", "ImageYUVToRGB": "nodes_morphology"}
"""Classes of ComfyUI's that a server without kornia does not name."""
MEANT = (
    "ImageScaleToMaxDimension: upscale_method",  # theirs names bilinear twice
    "LoadImageOutput: image",  # theirs is a list that the editor asks for
    "TrainLoraNode: existing_lora",  # the names of files
    "TrainLoraNode: seed",  # ours stays as it is when the editor draws other seeds
)
