"""Sampling in parts: noise, guider, sampler and noise levels, each a node."""
from __future__ import annotations

from functools import partial
from typing import Any

from safelight.comfy.building import Building, Guider, Link, Noise, Solver, Words
from safelight.comfy.data import Later
from safelight.comfy.node import Given, Input, choice, integer, node, real, seed, socket, switch
from safelight.comfy.nodes.sampling import ON_GPU, samplers, schedules, steered

AT = "sampling/custom_sampling"
free = partial(real, digits=False)
STEPS = integer("steps", 20, 1, 10000)
DENOISE = real("denoise", 1.0, 0, 1)
LEVELS = socket("SIGMAS")
ENDS = [free("sigma_max", 14.614642, 0, 5000), free("sigma_min", 0.0291675, 0, 5000)]
ETA, S_NOISE = free("eta", 1.0, 0, 100), free("s_noise", 1.0, 0, 100)
HIGH_LOW = ("high_sigmas:SIGMAS", "low_sigmas:SIGMAS")
ON = choice("noise_device", ("gpu", "cpu"))


def _drawn(b: Building, n: Given, guider: Guider, noise: Noise) -> Any:
    """Both outputs; each is drawn when something needs it."""
    negative = guider.negative
    said = dict(guider.model.sampled)
    model = steered(b, guider.model, guider.positive, negative or Words(guider.positive.cond))
    given = {
        "model": model, "positive": guider.positive.cond, "negative": negative.cond if negative else None, "latent": n["latent_image"],
        "sigmas": n["sigmas"], "seed": noise.seed, "add_noise": noise.start, "scale": guider.scale,
        **({"guide": "cfg", **said} if negative else {"guide": "off", **{k: v for k, v in said.items() if k == "changes"}}),
        "sampler": n["sampler"].sampler, "options": list(n["sampler"].options),
    }
    return b.add("sample_along", **given), b.add("sample_along", part="denoised", denoised=True, **given)


BOTH = ("output:LATENT", "denoised_output:LATENT")
WAY = [*socket("SAMPLER"), *LEVELS, *socket("LATENT", "latent_image")]


@node("SamplerCustom", AT,
      [*socket("MODEL"), switch("add_noise", True), seed("noise_seed"), real("cfg", 8.0, 0, 100, 0.1, digits=0.01),
       *socket("CONDITIONING", "positive", "negative"), *WAY], *BOTH)
def custom(b: Building, n: Given) -> Any:
    """From a latent along noise levels."""
    return _drawn(b, n, Guider(n["model"], n["positive"], n["negative"], n["cfg"]), Noise(n["noise_seed"], n["add_noise"]))


@node("SamplerCustomAdvanced", AT, [*socket("NOISE"), *socket("GUIDER"), *WAY], *BOTH)
def advanced(b: Building, n: Given) -> Any:
    """The same, of parts."""
    return _drawn(b, n, n["guider"], n["noise"])


@node("BasicGuider", f"{AT}/guiders", [*socket("MODEL"), *socket("CONDITIONING")], "GUIDER")
def basic(b: Building, n: Given) -> Any:
    """The prompt alone."""
    return Guider(n["model"], n["conditioning"])


@node("CFGGuider", f"{AT}/guiders",
      [*socket("MODEL"), *socket("CONDITIONING", "positive", "negative"), real("cfg", 8.0, 0, 100, 0.1, digits=0.01)], "GUIDER")
def cfg(b: Building, n: Given) -> Any:
    """Away from the negative prompt."""
    return Guider(n["model"], n["positive"], n["negative"], n["cfg"])


@node("RandomNoise", f"{AT}/noise", [seed("noise_seed")], "NOISE")
def random(b: Building, n: Given) -> Any:
    """A seed's noise."""
    return Noise(n["noise_seed"])


@node("DisableNoise", f"{AT}/noise", [], "NOISE")
def silent(b: Building, n: Given) -> Any:
    """No noise at the start."""
    return Noise(0, start=False)


@node("AddNoise", "_for_testing/custom_sampling/noise",
      [*socket("MODEL"), *socket("NOISE"), *LEVELS, *socket("LATENT", "latent_image")], "LATENT")
def noisy(b: Building, n: Given) -> Any:
    """A latent with noise on it."""
    if not n["noise"].start:
        raise ValueError("noise: DisableNoise has none to add; link RandomNoise, or leave this node out")
    return b.add("add_noise", model=n["model"], latent=n["latent_image"], sigmas=n["sigmas"], seed=n["noise"].seed)


def _sigmas(name: str, inputs: list[Input], op: str = "sigmas", **fixed: Any) -> None:
    """A scheduler that is our op `op`, with inputs of other names and what it fixes."""
    ours = {"scheduler": "schedule", "sigma_max": "high", "sigma_min": "low", "mu": "middle", "eps_s": "first_time"}
    ours |= {"beta": "spread"} if fixed.get("curve") == "laplace" else {}

    def make(b: Building, n: Given) -> Link:
        return b.add(op, **fixed, **{ours.get(i.name, i.name): n[i.name] for i in inputs})

    node(name, f"{AT}/schedulers", inputs, "SIGMAS")(make)


MODEL = socket("MODEL")
_sigmas("BasicScheduler", [*MODEL, choice("scheduler", schedules), STEPS, DENOISE], "model_sigmas")
_sigmas("BetaSamplingScheduler", [*MODEL, STEPS, free("alpha", 0.6, 0, 50), free("beta", 0.6, 0, 50)], "model_sigmas", schedule="beta")
_sigmas("SDTurboScheduler", [*MODEL, integer("steps", 1, 1, 10), DENOISE], "model_sigmas", schedule="turbo")
_sigmas("KarrasScheduler", [STEPS, *ENDS, free("rho", 7.0, 0, 100)], curve="karras")
_sigmas("ExponentialScheduler", [STEPS, *ENDS], curve="exponential")
_sigmas("PolyexponentialScheduler", [STEPS, *ENDS, free("rho", 1.0, 0, 100)], curve="polyexponential")
_sigmas("LaplaceScheduler", [STEPS, *ENDS, free("mu", 0.0, -10, 10, 0.1), free("beta", 0.5, 0, 10, 0.1)], curve="laplace")
_sigmas("VPScheduler",
        [STEPS, free("beta_d", 19.9, 0, 5000), free("beta_min", 0.1, 0, 5000), free("eps_s", 0.001, 0, 1, 0.0001)], curve="vp")


@node("AlignYourStepsScheduler", f"{AT}/schedulers",
      [choice("model_type", ("SD1", "SDXL", "SVD")), integer("steps", 10, 1, 10000), DENOISE], "SIGMAS")
def align(b: Building, n: Given) -> Any:
    """Align Your Steps' levels."""
    return b.add("sigmas", curve=f"ays-{n['model_type'].lower()}", steps=n["steps"], denoise=n["denoise"])


@node("SplitSigmas", f"{AT}/sigmas", [*LEVELS, integer("step", 0, 0, 10000)], *HIGH_LOW)
def split(b: Building, n: Given) -> Any:
    """The noise levels before a step, and from it on."""
    return tuple(b.add("cut_sigmas", part=keep, sigmas=n["sigmas"], keep=keep, step=n["step"]) for keep in ("high", "low"))


@node("SplitSigmasDenoise", f"{AT}/sigmas", [*LEVELS, DENOISE], *HIGH_LOW)
def split_share(b: Building, n: Given) -> Any:
    """The same by the share of the steps that are low."""
    return tuple(b.add("cut_sigmas", part=keep, sigmas=n["sigmas"], keep=keep, share=n["denoise"]) for keep in ("high", "low"))


@node("FlipSigmas", f"{AT}/sigmas", LEVELS, "SIGMAS")
def flip(b: Building, n: Given) -> Any:
    """The noise levels backwards."""
    return b.add("flip_sigmas", sigmas=n["sigmas"])


@node("SetFirstSigma", f"{AT}/sigmas", [*LEVELS, free("sigma", 136.0, 0, 20000, 0.001)], "SIGMAS")
def set_first(b: Building, n: Given) -> Any:
    """Another first level."""
    return b.add("set_first_sigma", sigmas=n["sigmas"], sigma=n["sigma"])


@node("ExtendIntermediateSigmas", f"{AT}/sigmas",
      [*LEVELS, integer("steps", 2, 1, 100), free("start_at_sigma", -1.0, -1, 20000), free("end_at_sigma", 12.0, 0, 20000),
       choice("spacing", ("linear", "cosine", "sine"))], "SIGMAS")
def extend(b: Building, n: Given) -> Any:
    """Further levels between some."""
    start = None if n["start_at_sigma"] < 0 else n["start_at_sigma"]
    return b.add("extend_sigmas", sigmas=n["sigmas"], steps=n["steps"], start=start, end=n["end_at_sigma"], spacing=n["spacing"])


@node("SamplingPercentToSigma", f"{AT}/sigmas",
      [*MODEL, real("sampling_percent", 0.0, 0, 1, 0.0001), switch("return_actual_sigma", False)], "sigma_value:FLOAT")
def at_share(b: Building, n: Given) -> Any:
    """The noise level at a share of the way."""
    return Later(b.add("sigma_at", model=n["model"], share=n["sampling_percent"], exact=n["return_actual_sigma"]).id)


@node("KSamplerSelect", f"{AT}/samplers", [choice("sampler_name", samplers)], "SAMPLER")
def select(b: Building, n: Given) -> Any:
    """A sampler by name."""
    return Solver(n["sampler_name"].removesuffix(ON_GPU))


def _solver(name: str, sampler: str, *inputs: Input, title: str = "") -> None:
    """A sampler whose settings are the node's inputs; those that are as ComfyUI has them by default are left unsaid."""

    def make(b: Building, n: Given) -> Solver:
        told = tuple(f"{i.name}={n[i.name]}" for i in inputs if i.type != "COMBO" and n[i.name] != i.default)
        return Solver(sampler + ("_heun" if n.get("solver_type") == "heun" else ""), told)

    node(name, f"{AT}/samplers", inputs, "SAMPLER", title=title)(make)


_solver("SamplerEulerAncestral", "euler_ancestral", ETA, S_NOISE)
_solver("SamplerEulerAncestralCFGPP", "euler_ancestral_cfg_pp", free("eta", 1.0, 0, 1), free("s_noise", 1.0, 0, 10),
        title="SamplerEulerAncestralCFG++")
_solver("SamplerDPMPP_2S_Ancestral", "dpmpp_2s_ancestral", ETA, S_NOISE)
_solver("SamplerDPMPP_SDE", "dpmpp_sde", ETA, S_NOISE, free("r", 0.5, 0, 100), ON)
_solver("SamplerDPMPP_2M_SDE", "dpmpp_2m_sde", choice("solver_type", ("midpoint", "heun")), ETA, S_NOISE, ON)
_solver("SamplerDPMPP_3M_SDE", "dpmpp_3m_sde", ETA, S_NOISE, ON)
_solver("SamplerLMS", "lms", integer("order", 4, 1, 100))
_solver("SamplerDPMAdaptative", "dpm_adaptive", integer("order", 3, 2, 3), free("rtol", 0.05, 0, 100), free("atol", 0.0078, 0, 100),
        free("h_init", 0.05, 0, 100), free("pcoeff", 0.0, 0, 100), free("icoeff", 1.0, 0, 100), free("dcoeff", 0.0, 0, 100),
        free("accept_safety", 0.81, 0, 100), free("eta", 0.0, 0, 100), S_NOISE)


@node("SamplerER_SDE", f"{AT}/samplers",
      [choice("solver_type", ("ER-SDE", "Reverse-time SDE", "ODE")), integer("max_stage", 3, 1, 3), ETA, S_NOISE], "SAMPLER")
def er_sde(b: Building, n: Given) -> Any:
    """ER-SDE, or the reversed chain's own noise times eta, or none."""
    power = {"ER-SDE": 0.0, "ODE": 1.0}.get(n["solver_type"], 1 + n["eta"])
    return Solver("er_sde", (f"stages={n['max_stage']}", f"power={power}", f"s_noise={n['s_noise']}"))


@node("SamplerSASolver", f"{AT}/samplers",
      [*MODEL, free("eta", 1.0, 0, 10), real("sde_start_percent", 0.2, 0, 1, 0.001), real("sde_end_percent", 0.8, 0, 1, 0.001),
       free("s_noise", 1.0, 0, 100), integer("predictor_order", 3, 1, 6), integer("corrector_order", 4, 0, 6), switch("use_pece", False),
       switch("simple_order_2", False)], "SAMPLER")
def sa_solver(b: Building, n: Given) -> Any:
    """SA-Solver. Its corrector is one order above its predictor."""
    if n["corrector_order"] != n["predictor_order"] + 1 or n["simple_order_2"]:
        raise ValueError(f"corrector_order: expected predictor_order + 1 ({n['predictor_order'] + 1}) and simple_order_2 off")
    told = {"eta": n["eta"], "start": n["sde_start_percent"], "end": n["sde_end_percent"], "s_noise": n["s_noise"],
            "order": n["predictor_order"]}
    return Solver("sa_solver_pece" if n["use_pece"] else "sa_solver", tuple(f"{k}={v}" for k, v in told.items()))


@node("SamplerEulerCFGpp", "_for_testing", [choice("version", ("regular", "alternative"))], "SAMPLER", title="SamplerEulerCFG++",
      flags=["experimental"])
def euler_cfg_pp(b: Building, n: Given) -> Any:
    """Euler with CFG++."""
    if n["version"] != "regular":
        raise ValueError("version: only 'regular' is here")
    return Solver("euler_cfg_pp")
