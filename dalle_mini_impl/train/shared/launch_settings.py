"""What accelerate's launcher asks for, in its config file or as its options: taken over, or refused.

Its number of processes, machines and devices is accelerate's matter, FSDP's options that of `fsdp.py`.
"""

import os

from dalle_mini_impl.util.errors import UserError

PRECISIONS = {"bf16": "bf16", "fp16": "fp16", "fp32": "no"}
"""A precision in configs -> accelerate's word for it."""
UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed; use distributed_type FSDP, as in configs/accelerate/gpus-8-fsdp.yaml",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM; use distributed_type FSDP, as in configs/accelerate/gpus-8-fsdp.yaml",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config; use distributed_type FSDP or MULTI_GPU",
}
"""Variable that the launcher sets to true -> what it stands for, and what to do instead."""


def check_launch_settings(accumulation: int | None = None) -> None:
    """Refuse what the launcher asks for and this package does not do.

    Args:
        accumulation: passes per step in the settings of a run; None where there are no steps.

    Raises:
        UserError: there is such a thing.
    """
    for name, what in UNSUPPORTED.items():
        if os.environ.get(name, "false").lower() == "true":
            raise UserError(f"expected a launch that is supported here, got {what}")
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no":
        raise UserError(
            f"expected no dynamo_backend from the launcher, got {backend}; leave it out and set run.compile=true"
        )
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto")
    if accumulation is not None and steps not in ("auto", str(accumulation)):
        raise UserError(
            f"expected the passes per step of run.accumulation, {accumulation}, got gradient_accumulation_steps "
            f"{steps} from the launcher; set run.accumulation={steps}, or leave it out"
        )


def mixed_precision(key: str, precision: str) -> str:
    """Accelerate's word for the precision of a stage.

    Args:
        key: name of the setting, for the error message.
        precision: its value; `auto` is the launcher's precision, and bf16 where that is `no`.

    Raises:
        UserError: the value is unknown, or contradicts the launcher.
    """
    if precision not in ("auto", *PRECISIONS):
        raise UserError(f"{key} is {precision!r}; expected auto, {', '.join(PRECISIONS)}")
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    chosen = PRECISIONS.get(precision, launched if launched != "no" else "bf16")
    if chosen not in PRECISIONS.values():
        raise UserError(f"expected mixed_precision no, bf16 or fp16 from the launcher, got {launched}; change it")
    if launched not in ("no", chosen):
        raise UserError(
            f"expected one precision, got mixed_precision {launched} from the launcher and {key} {precision}; "
            f"leave one of them out"
        )
    return chosen
