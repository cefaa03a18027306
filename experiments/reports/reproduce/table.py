"""The reference runs: for each name its environment, its rows, and what is published beside them.

A row is options of `metarl train`, or a baseline, at a budget of environment steps. Change a row here, then run
`metarl reproduce NAME --rows LABEL --update`.
"""

from collections.abc import Sequence
from typing import NamedTuple

SEEDS = (0, 1, 2)


class ReferenceRow(NamedTuple):
    """A row: a run for each seed."""

    label: str
    options: str = ""  # of metarl train; the horizon is 100 unless it is given
    baseline: str | None = None  # of metarl compare --baselines, with the network and the sizes in `options`
    env_steps: int = 3_000_000
    seeds: tuple[int, ...] = SEEDS


class Published(NamedTuple):
    """A published row: returns as they stand there."""

    label: str
    source: str
    returns: tuple[str, ...]  # after 0, 1, 2, 3 steps; or one: after adaptation


class Reference(NamedTuple):
    """What belongs to a name."""

    env: str
    rows: tuple[ReferenceRow, ...]
    published: tuple[Published, ...] = ()
    remark: str = ""  # on the published rows


def usual(shared: str, env_steps: int, seeds: tuple[int, ...], anil: str) -> tuple[ReferenceRow, ...]:
    """The rows of most tasks; `shared` are the options of all, `anil` those of ANIL beside `--adapt head`."""

    def train(label: str, options: str) -> ReferenceRow:
        return ReferenceRow(label, f"{shared} {options}".strip(), None, env_steps, seeds)

    def baseline(name: str) -> ReferenceRow:
        return ReferenceRow(name, shared, name, env_steps, seeds)

    return (
        train("maml", ""),
        train("fo_maml", "--outer fo_maml"),
        train("proximal", "--outer-step proximal"),
        train("trust region", "--outer-step trust_region"),
        train("ANIL", f"--adapt head {anil}"),
        baseline("multitask"),
        baseline("oracle"),
        baseline("rl2"),
    )


FINN = "Finn et al. (2017); ± is a 95 % interval over tasks"
FINN_STORED = "Finn et al. (2017), results stored in their repository"
RAGHU = "Raghu et al. (2020); ± is the standard deviation of three initialisations"

OTHER_SIMULATOR = (
    "Published returns come from other simulators and control steps, for 200 steps of an episode, ours are for 100:"
    " compare the order of the rows, not the returns."
)

CAREFUL = "--step-options target_kl=0.05"


def three_steps(inner_lr: str) -> str:
    """Options of rows that are trained for three inner steps."""
    return f"--inner-steps 3 --inner-lr {inner_lr} --learning-rate 1e-3 {CAREFUL}"


def mujoco(
    shared: str,
    env_steps: int,
    *,
    three: str = "",
    tuning: str = "",
    twice: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> tuple[ReferenceRow, ...]:
    """The rows of MuJoCo tasks with these labels, or all of them; with one seed, or two for the labels `twice`.

    `three` is the inner step size of the row for three steps, and `tuning` has further options of `multitask`.
    The row for three steps and first-order MAML stop the epochs of an iteration early: first-order MAML else collapsed
    on half-cheetah direction (docs/mujoco_settings.md).
    """
    proximal = f"{shared} --outer-step proximal"
    trained = {
        "proximal": proximal,
        "three inner steps, proximal": f"{proximal} {three_steps(three)}",
        "fo_maml, proximal": f"{proximal} --outer fo_maml {CAREFUL}",
        "ANIL, proximal": f"{proximal} --adapt head",
        "learned step sizes, proximal": f"{proximal} --learn-inner-lr layer",
        "trust region": f"{shared} --outer-step trust_region",
    }
    baselines = {"multitask": f"{proximal} {tuning}".strip(), "oracle": proximal, "rl2": shared, "ppo": shared}

    def row(label: str, options: str, baseline: str | None) -> ReferenceRow:
        return ReferenceRow(label, options, baseline, env_steps, SEEDS[: 2 if label in twice else 1])

    rows = [row(label, options, None) for label, options in trained.items()]
    rows += [row(name, options, name) for name, options in baselines.items()]
    return tuple(row for row in rows if not labels or row.label in labels)


# From docs/mujoco_settings.md, where they were tried on half-cheetahs and ants.
DIRECTION = "--inner-lr 0.3 --gae-lambda 0.9 --log-std-init -1 --eval-every 20"
VELOCITY = "--inner-lr 0.1 --gae-lambda 0.9 --log-std-init -1.5 --eval-every 20"
ANT = "--inner-lr 0.03 --gae-lambda 0.9 --log-std-init -2 --eval-every 20"


def normalized(
    label: str, shared: str, options: str, env_steps: int, seeds: tuple[int, ...] = (0,), baseline: str | None = None
) -> ReferenceRow:
    """A row with `proximal` and normalised observations."""
    proximal = f"{shared} --outer-step proximal --normalize-observations"
    return ReferenceRow(f"{label}, normalised", f"{proximal} {options}", baseline, env_steps, seeds)


REFERENCES: dict[str, Reference] = {
    "navigation": Reference(
        "navigation",
        (
            *usual("", 3_000_000, SEEDS, "--inner-lr 1"),
            ReferenceRow("sign_maml", "--outer sign_maml"),
        ),
        (
            Published("MAML", FINN, ("-40.4 ± 4.0", "-11.7 ± 2.2", "-3.3 ± 0.6", "-3.2 ± 0.6")),
            Published("random initialisation", FINN_STORED, ("-82.7", "-58.0", "-53.8", "-46.8")),
            Published("oracle", FINN_STORED, ("-2.3 ± 0.1", "", "", "")),
            Published("MAML", RAGHU, ("-20.3 ± 3.2",)),
            Published("ANIL", RAGHU, ("-20.1 ± 2.3",)),
        ),
        "Finn et al.'s policies begin with a larger standard deviation of the actions, 1 instead of 0.6.",
    ),
    "point_velocity": Reference("point_velocity", usual("", 3_000_000, SEEDS, "--inner-lr 1")),
    "grid_world": Reference(
        "grid_world",
        usual("--inner-lr 0.5 --horizon 20", 1_200_000, SEEDS, ""),
        remark="The best return is about -0.3.",
    ),
    "half_cheetah_direction": Reference(
        "half_cheetah_direction",
        (
            *mujoco(DIRECTION, 16_000_000, three="0.1", twice=("proximal", "ANIL, proximal", "multitask", "rl2")),
            # returns still rise at 16 million steps
            ReferenceRow(
                "ANIL, proximal, 32 M steps", f"{DIRECTION} --outer-step proximal --adapt head", None, 32_000_000, (0,)
            ),
            normalized("ANIL", VELOCITY, "--adapt head", 16_000_000, (0, 1)),
        ),
        (
            Published("MAML", FINN, ("-50.7 ± 5.7", "293.2 ± 17.0", "313.5 ± 15.8", "315.7 ± 13.9")),
            Published("pretrained", FINN_STORED, ("-43.0", "-24.8", "-12.9", "19.6")),
            Published("random initialisation", FINN_STORED, ("-35.7", "21.8", "62.3", "86.2")),
            Published("oracle", FINN_STORED, ("442.7 ± 8.4", "", "", "")),
            Published("MAML", RAGHU, ("170.4 ± 21.0",)),
            Published("ANIL", RAGHU, ("363.2 ± 14.8",)),
        ),
        OTHER_SIMULATOR,
    ),
    "half_cheetah_velocity": Reference(
        "half_cheetah_velocity",
        (
            *mujoco(
                VELOCITY,
                16_000_000,
                three="0.03",
                tuning="--inner-lr 0.003",
                twice=("three inner steps, proximal", "ANIL, proximal", "multitask", "rl2"),
            ),
            normalized("ANIL", VELOCITY, "--adapt head", 16_000_000),
            normalized("three inner steps", VELOCITY, three_steps("0.03"), 16_000_000),
            normalized("multitask", VELOCITY, "--inner-lr 0.003", 16_000_000, baseline="multitask"),
        ),
        (
            Published("MAML", FINN_STORED, ("-129.5 ± 16.5", "-78.6 ± 9.9", "-66.6 ± 8.9", "-60.8 ± 8.6")),
            Published("pretrained", FINN_STORED, ("-158.0", "-135.4", "-128.5", "-133.6")),
            Published("random initialisation", FINN_STORED, ("-254.8", "-254.3", "-246.8", "-230.8")),
            Published("oracle", FINN_STORED, ("-54.5 ± 6.9", "", "", "")),
            Published("MAML", RAGHU, ("-139.0 ± 18.9",)),
            Published("ANIL", RAGHU, ("-120.9 ± 6.3",)),
        ),
        OTHER_SIMULATOR,
    ),
    "ant_direction": Reference(
        "ant_direction",
        (
            *mujoco(ANT, 8_000_000, labels=("proximal", "ANIL, proximal")),
            normalized("ANIL", ANT, "--adapt head", 8_000_000),
        ),
        (
            Published("MAML", FINN_STORED, ("8.7 ± 14.2", "499.2 ± 32.1", "500.7", "499.1")),
            Published("pretrained", FINN_STORED, ("3.2", "1.3", "6.5", "6.9")),
            Published("random initialisation", FINN_STORED, ("3.1", "9.3", "16.0", "26.1")),
            Published("oracle", FINN_STORED, ("524.8 ± 12.4", "", "", "")),
        ),
        OTHER_SIMULATOR,
    ),
    "ant_velocity": Reference(
        "ant_velocity",
        mujoco(ANT, 8_000_000, labels=("proximal", "ANIL, proximal")),
        (
            Published("MAML", FINN_STORED, ("30.6 ± 30.0", "96.7 ± 20.7", "100.1", "101.4 ± 21.0")),
            Published("pretrained", FINN_STORED, ("-1.8", "6.1", "8.5", "9.5")),
            Published("random initialisation", FINN_STORED, ("-78.6", "-62.8", "-48.6", "-35.6")),
            Published("oracle", FINN_STORED, ("107.9 ± 20.0", "", "", "")),
        ),
        OTHER_SIMULATOR,
    ),
    "hopper_random_parameters": Reference(
        "hopper_random_parameters",
        mujoco(
            f"{VELOCITY} --horizon 200", 8_000_000, tuning="--inner-lr 0.003", labels=("ANIL, proximal", "multitask")
        ),
        remark="ProMP's paper has curves of this task, no table.",
    ),
}
