"""What a state belongs to: the stage, its settings and the parts it trains with; compared when a run is resumed."""

import json
from dataclasses import dataclass, field
from typing import Any

from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.util.errors import UserError

POSITIONS = "image_embed.positions"
"""Setting of how many positions of the stream an image embedding has."""
ADDABLE = (POSITIONS, "augmented_share")
"""Settings that give a model more weights, and that a run without them may be resumed with."""
FIXED = (
    "model", POSITIONS, "start_from", "lora", "replay.share", "scenes.store", "tune.decoder_only", "run.seed",
    "run.order", "run.batch_size", "augmented_share", "random_order",
)  # fmt: skip
"""Settings that a resumed run must share with the state: without them the weights do not fit, or the pictures still to
come in an epoch are others. Those of `ADDABLE` may be added to a run without, and the share and the tasks of scenes may
change as a curriculum wants it: of the epoch that is under way some pictures then come twice or not."""
OF_OLD_VERSIONS = {"run.order": "permuted"}
"""Settings that records of old versions lack, where the value is not today's default."""
OF_CONTENT = ("scenes.store",)
"""Settings that name a folder whose content counts, in `pictures`: of themselves only whether they name one."""
SWITCHES = ("augmented_share",)
"""Of `FIXED`, settings of which only whether they are 0 must stay."""
UNCOMPARED = ("run.model_dir", "run.state_dir", "run.workers", "run.patience")
"""Settings that may differ unsaid: a run's folders may be moved, and batches are the same whoever makes them."""


@dataclass(frozen=True)
class RunRecord:
    """What a state belongs to."""

    stage: str = ""
    """Name of the class of the stage's config; empty in states of old versions."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The whole config, as plain values by dotted key."""
    parts: dict[str, str] = field(default_factory=dict)
    """Identities of the other parts that the run trains with, by name."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Today's defaults of the settings, which those that an older record lacks had; not written."""

    def section(self, name: str) -> dict[str, Any]:
        """The settings of one section, such as `model`, as nested plain values."""
        values: dict[str, Any] = {}
        for key, value in self.settings.items():
            *parents, last = key.split(".")
            if parents[:1] == [name]:
                inner = values
                for parent in parents[1:]:
                    inner = inner.setdefault(parent, {})
                inner[last] = value
        return values

    def as_json(self) -> str:
        """The record as one line of JSON."""
        return json.dumps({"stage": self.stage, "settings": self.settings, "parts": self.parts})


def make_record(config: Any, parts: dict[str, str], pictures: str = "") -> RunRecord:
    """The record of a run.

    Args:
        config: the stage's config.
        parts: identities of the other parts that the run trains with, by name.
        pictures: version of the picture store or token cache, empty if it has none. It is compared like a setting that
            may change: a run may go on with more pictures, but not unsaid.
    """
    # Through JSON, so that tuples equal the lists that are read back.
    settings, defaults = (json.loads(json.dumps(dict(_flat(to_dict(one))))) for one in (config, type(config)()))
    settings |= {"pictures": pictures} if pictures else {}
    return RunRecord(type(config).__name__, settings, parts, defaults)


def read_record(text: str) -> RunRecord:
    """Read what `RunRecord.as_json` wrote.

    Raises:
        ValueError: it is something else.
    """
    values = json.loads(text)
    tables = (values["settings"], values["parts"]) if isinstance(values, dict) and len(values) == 3 else (None,)
    if not all(isinstance(table, dict) for table in tables) or not isinstance(values["stage"], str):
        raise ValueError("no record of a run")
    return RunRecord(values["stage"], {**OF_OLD_VERSIONS, **values["settings"]}, values["parts"])


def added_settings(saved: RunRecord, run: RunRecord) -> list[str]:
    """Those of `ADDABLE` that a run adds to a state without them."""
    return [name for name in ADDABLE if run.settings.get(name) and not saved.settings.get(name)]


def changed_settings(saved: RunRecord, run: RunRecord, where: str) -> list[str]:
    """Compare the run that is to continue with the one that a state belongs to.

    Args:
        saved: the record in the state.
        run: the record of the run that is to continue.
        where: path of the state, for the message.

    Returns:
        One text for each other setting that differs and is applied from here on, such as `run.steps 10 -> 20`.

    Raises:
        UserError: the stage, a part or one of `FIXED` differs; the message names the differences.
    """
    if not saved.stage:  # written by an old version
        return []
    if saved.stage != run.stage:
        raise UserError(f"expected a state of {run.stage} in {where}, got one of {saved.stage}; check run.state_dir")
    added = added_settings(saved, run)
    may_differ = {*added, *(("scorer",) if POSITIONS in added else ())}
    before = run.defaults | saved.settings
    may_differ |= {name for name in SWITCHES if bool(before.get(name)) == bool(run.settings.get(name))}
    for name in sorted((saved.parts.keys() & run.parts.keys()) - may_differ):  # settings tell which parts a run needs
        if saved.parts[name] != run.parts[name]:
            raise UserError(
                f"expected {name} {saved.parts[name]}, with which {where} was trained, got {run.parts[name]}; "
                f"put that part back, or start without --resume"
            )
    changes = {
        name: f"{name} {_shown(saved, name)} -> {_shown(run, name)}"
        for name in sorted(before.keys() | run.settings.keys())
        if _compared(name, before.get(name)) != _compared(name, run.settings.get(name)) and name not in UNCOMPARED
    }
    fixed = [key for key in FIXED if key not in may_differ]
    refused = [text for name, text in changes.items() if any(f"{name}.".startswith(f"{key}.") for key in fixed)]
    if refused:
        raise UserError(
            f"expected the settings with which {where} was started, got {', '.join(refused)}; "
            f"change them back, or start without --resume"
        )
    return list(changes.values())


def _compared(name: str, value: Any) -> Any:
    """What of a setting is compared."""
    return bool(value) if name in OF_CONTENT else value


def _shown(record: RunRecord, name: str) -> str:
    return json.dumps(record.settings[name]) if name in record.settings else "default"


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return rows
