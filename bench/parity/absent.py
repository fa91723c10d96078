"""Why node classes of ComfyUI's are not here, and what of those that are here is meant to differ."""
from __future__ import annotations

GUIDED = "another change of the guidance; ours are RescaleCFG, PerturbedAttentionGuidance and two guiders"
NETWORK = "changes the network's inside; ours changes by patches, and this one is not written"
VIDEO = "video"
OTHER = "another family of models"
VISION = "needs a picture encoder on a condition; `with_ip_adapter` takes pictures as prompts"

SCOPE = {
    "nodes_ace": "sound", "nodes_apg": GUIDED, "nodes_attention_multiply": NETWORK, "nodes_camera_trajectory": VIDEO,
    "nodes_cfg": GUIDED,
    "nodes_chroma_radiance": OTHER, "nodes_context_windows": VIDEO, "nodes_cosmos": VIDEO,
    "nodes_easycache": "skips steps' work by guesses",
    "nodes_edit_model": OTHER, "nodes_eps": GUIDED, "nodes_flux": OTHER, "nodes_fresca": GUIDED, "nodes_hidream": OTHER,
    "nodes_hooks": "LoRAs on a part of the way or of the prompts: use areas, ranges and `with_lora`", "nodes_hunyuan": OTHER,
    "nodes_hunyuan3d": "shapes", "nodes_hypertile": NETWORK, "nodes_load_3d": "shapes", "nodes_lotus": OTHER, "nodes_lt": VIDEO,
    "nodes_lumina2": OTHER, "nodes_mahiro": GUIDED, "nodes_mochi": VIDEO, "nodes_model_merging_model_specific": OTHER,
    "nodes_model_patch": OTHER, "nodes_perpneg": "deprecated; PerpNegGuider is here", "nodes_photomaker": VISION, "nodes_pixart": OTHER,
    "nodes_qwen": OTHER, "nodes_sag": "asks again about a blurred picture; PerturbedAttentionGuidance is here", "nodes_sdupscale": OTHER,
    "nodes_slg": GUIDED,
    "nodes_stable3d": "shapes", "nodes_stable_cascade": OTHER, "nodes_tcfg": GUIDED, "nodes_tomesd": NETWORK, "nodes_video": VIDEO,
    "nodes_video_model": VIDEO, "nodes_wan": VIDEO, "nodes_webcam": "the browser's camera", "nodes_optimalsteps": OTHER,
    "nodes_model_downscale": NETWORK, "nodes_torch_compile": "`safelight` compiles by its own setting",
    "nodes_ip2p": "networks that are shown a picture in eight channels are not read",
    "nodes_hypernetwork": "hypernetworks are not read", "nodes_gits": "its tables are not here",
    "nodes_cond": OTHER,
}
WHY = {
    "CLIPVisionEncode": VISION, "CLIPVisionLoader": VISION, "StyleModelApply": VISION, "StyleModelLoader": VISION,
    "unCLIPConditioning": VISION, "unCLIPCheckpointLoader": VISION, "GLIGENLoader": "GLIGEN is not read",
    "GLIGENTextBoxApply": "GLIGEN is not read",
    "CheckpointLoader": "its configuration files are not read; CheckpointLoaderSimple finds the layout",
    "LoadLatent": "latents are no files here", "SaveLatent": "latents are no files here",
    "JoinImageWithAlpha": "pictures have no transparency here",
    "SaveSVGNode": "drawings",
    "LatentApplyOperationCFG": GUIDED, "ModelSamplingContinuousEDM": OTHER, "ModelSamplingContinuousV": OTHER,
    "ModelSamplingStableCascade": OTHER, "ModelSamplingAuraFlow": OTHER, "ModelSamplingFlux": OTHER,
    "ModelComputeDtype": "the precision is the run's (`--dtype`)", "ControlNetApplySD3": "ControlNets of SD 3 are not read",
    "SkipLayerGuidanceSD3": GUIDED, "SamplerLCMUpscale": "a sampler that changes the size on the way", "CLIPTextEncodeControlnet": OTHER,
    "T5TokenizerOptions": OTHER, "SetUnionControlNetType": "union ControlNets are not read", "ControlNetInpaintingAliMamaApply": OTHER,
    "ImageRGBToYUV": "three pictures of one", "ImageYUVToRGB": "one picture of three",
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
