"""What is compared: arms, budgets, seeds, split and length; kept in OUT, so that the same command resumes."""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2_cads.comparison.arms import Arm
from nnunetv2_cads.comparison.split import check_budgets, learning_order
from pretraining.system.errors import UserError
from pretraining.system.files import write_json

ADDED_LATER = ("arms", "settings", "budgets", "seeds", "images")
"""What a later command on the same OUT may extend; all else is as the first one had it."""


class Training(NamedTuple):
    """One training of a comparison.

    Attributes:
        arm: its name.
        budget: number of labelled cases.
        seed: of the cases, of the weights and of the order of the patches.
    """

    arm: str
    budget: int
    seed: int

    @property
    def name(self) -> str:
        """Names its files."""
        return f"{self.arm}__{self.budget}__{self.seed}"


@dataclass(frozen=True)
class Design:
    """All that decides what the trainings are.

    Attributes:
        dataset: its name.
        plans: name of its plans.
        plans_sha256: of their content.
        configuration: of the plans.
        patients: patient by case, of all labelled cases.
        test: the held-out cases.
        arms: what is compared; the first one is the baseline.
        images: whether reports show pictures and names of cases; once they do not, none does.
        settings: flags that gave arms their settings; they count for arms that are added later, too.
        budgets: numbers of labelled cases.
        seeds: their number.
        epochs: of each training.
        iterations: of each epoch.
        mirroring: whether patches are mirrored, in training and in prediction.
        amp: ``bf16`` for autocast on the CPU, where nnU-Net has none; ``none``.
    """

    dataset: str
    plans: str
    plans_sha256: str
    configuration: str
    patients: Mapping[str, str]
    test: tuple[str, ...]
    arms: tuple[Arm, ...]
    budgets: tuple[int, ...]
    seeds: int
    epochs: int
    iterations: int
    mirroring: bool = True
    amp: str = "none"
    images: bool = True
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_budgets(self.budgets, len(self.patients) - len(self.test))

    def trainings(self) -> Iterator[Training]:
        """Seed after seed and budget after budget, so that arms can be compared as early as can be."""
        for seed, budget, arm in itertools.product(range(self.seeds), self.budgets, self.arms):
            yield Training(arm.name, budget, seed)

    def learnt_cases(self, budget: int, seed: int) -> list[str]:
        """The cases that a training learns from; those of a smaller budget are among them."""
        pool = {case: patient for case, patient in self.patients.items() if case not in self.test}
        return learning_order(pool, seed)[:budget]

    def arm(self, name: str) -> Arm:
        """The arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)

    def extended(self, earlier: "Design") -> "Design":
        """This design with the arms, budgets and seeds of an earlier one of the same comparison.

        Raises:
            UserError: they differ in more than these.
        """
        if self.plans == earlier.plans and self.plans_sha256 != earlier.plans_sha256:
            raise UserError(f"began with other {self.plans}, which were made anew since; choose another OUT")
        for name, value in asdict(self).items():
            if name not in ADDED_LATER and value != (before := asdict(earlier)[name]):
                raise UserError(f"has {name} {_short(before)}, not {_short(value)}; repeat that, or choose another OUT")
        known = {arm.name: arm for arm in earlier.arms}
        for arm in self.arms:
            before = known.get(arm.name, arm)
            if before.settings != arm.settings:
                raise UserError(
                    f"has arm {arm.name} with {_words(before.settings)}, not {_words(arm.settings)}; give the same "
                    "encoder a further name with --encoder NAME=FILE, or choose another OUT"
                )
            if replace(before, encoder=arm.encoder) != arm:  # the file may have moved
                raise UserError(f"has another encoder file for arm {arm.name}; give this one a new name")
        return replace(
            self,
            arms=tuple({**known, **{arm.name: arm for arm in self.arms}}.values()),
            settings=tuple(dict.fromkeys((*earlier.settings, *self.settings))),
            budgets=tuple(sorted({*earlier.budgets, *self.budgets})),
            seeds=max(self.seeds, earlier.seeds),
            images=self.images and earlier.images,
        )

    def write(self, path: Path) -> None:
        """Write as JSON."""
        arms = [asdict(arm) | {"encoder": str(arm.encoder) if arm.encoder else None} for arm in self.arms]
        write_json(path, asdict(self) | {"arms": arms})


def read_design(path: Path) -> Design:
    """Read what `Design.write` wrote.

    Raises:
        UserError: the file is damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        arms = [arm | {"encoder": Path(arm["encoder"]) if arm["encoder"] else None} for arm in content.pop("arms")]
        lists = {name: tuple(content.pop(name)) for name in ("test", "budgets", "settings")}
        return Design(**content, **lists, arms=tuple(Arm(**arm) for arm in arms))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged ({error}); choose another OUT") from error


def _words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in settings.items()) or "its own settings"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
