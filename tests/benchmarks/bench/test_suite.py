"""A suite file, read: what it means, and that every mistake is one line with the way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from securefed.errors import ConfigError
from securefed_benchmarks.bench.grid import Only, count, expand
from securefed_benchmarks.bench.runner import longest_first, plan
from securefed_benchmarks.bench.suite import find_suite, load_suite, seed_list
from tests.benchmarks.bench.suites import GRID, JOB, write


def test_a_suite_multiplies_its_axes_and_seeds(tmp_path: Path) -> None:
    suite = load_suite(write(tmp_path))
    cells, skipped = expand(suite, Only({}))
    assert suite.cells == count(suite, Only({})) == len(cells) + 2 * len(skipped) == 12
    assert [c.seed for c in cells] == [0] * 6 + [1] * 6  # seeds outermost: a stopped bench has whole tables
    assert len({c.key for c in cells}) == 12


def test_cells_of_one_seed_share_shards_first_model_and_liars(tmp_path: Path) -> None:
    cells, _ = expand(load_suite(write(tmp_path)), Only({}))
    for cell in cells:
        job = cell.job
        assert job["seed"] == job["data"]["seed"] == job["model"]["seed"] == cell.seed


def test_a_rule_is_told_the_f_of_its_cell_wherever_it_takes_one(tmp_path: Path) -> None:
    grid = GRID.replace(
        '["mean", "median", "krum"]',
        '["krum", {label = "mixed", name = "pipeline", pre = ["nnm"], rule = "trimmed_mean"}]',
    )
    cells, _ = expand(load_suite(write(tmp_path, grid)), Only({}))
    told = {c.labels["defence"]: c.job["aggregator"] for c in cells}
    assert told["krum"]["f"] == 2
    assert told["mixed"]["pre"] == [{"name": "nnm", "f": 2}]
    assert told["mixed"]["rule"] == {"name": "trimmed_mean", "f": 2}


def test_a_rule_that_is_told_another_f_on_purpose_is_declared(tmp_path: Path) -> None:
    grid = GRID.replace('["mean", "median", "krum"]', '[{label = "told 1", name = "trimmed_mean", f = 1}]')
    cells, skipped = expand(load_suite(write(tmp_path, grid)), Only({}))
    assert not skipped
    assert {c.job["attack"].get("declared_f") for c in cells if c.labels["attack"] == "sign_flip"} == {1}


def test_without_an_attack_nobody_lies_and_the_rule_is_still_told_f(tmp_path: Path) -> None:
    cells, _ = expand(load_suite(write(tmp_path)), Only({"defence": ["krum"], "attack": ["none"]}))
    assert {c.job["attack"]["f"] for c in cells} == {0}
    assert {c.job["aggregator"]["f"] for c in cells} == {2}


def test_impossible_pairs_are_listed_with_their_reason_and_the_rest_is_played(tmp_path: Path) -> None:
    grid = GRID + 'protection = ["plain", "masking"]\n'
    cells, skipped = expand(load_suite(write(tmp_path, grid)), Only({}))
    assert cells
    reasons = {(s.labels["defence"], s.labels["protection"]): s.reason for s in skipped}
    assert "must see single updates" in reasons["krum", "masking"]
    assert not any(protection == "plain" for _, protection in reasons)


def test_without_liars_every_attack_is_one_job_which_is_played_once(tmp_path: Path) -> None:
    grid = GRID.replace("f = [2]", "f = [0, 2]").replace('["none", "sign_flip"]', '["sign_flip", "ipm"]')
    cells, skipped = expand(load_suite(write(tmp_path, grid)), Only({"defence": ["median"]}))
    played = [(c.labels["f"], c.labels["attack"]) for c in cells if c.seed == 0]
    assert played == [(0, "sign_flip"), (2, "sign_flip"), (2, "ipm")]
    assert cells[0].job["attack"]["f"] == 0
    assert [s.reason for s in skipped] == ["the same job as with attack=sign_flip, which is played"]


def test_the_longest_cells_of_a_seed_come_first_and_seeds_stay_together(tmp_path: Path) -> None:
    grid = GRID + GRID.replace('"small"', '"big"').replace("0.5", "9")
    todo = plan(load_suite(write(tmp_path, grid)), Only({}), None)
    order = [(cell.seed, cell.grid) for cell in longest_first(todo)]
    assert order == sorted(order)  # "big" before "small", by chance of their names
    assert sorted(order) != [(cell.seed, cell.grid) for cell in todo.cells]


def test_a_cell_says_the_overrides_that_make_it_of_the_grids_job(tmp_path: Path) -> None:
    from securefed.config import load_config, to_tree

    grid = GRID + 'privacy = ["none", {unit = "client", noise_multiplier = 1.0, delta = 0.01}]\n'
    suite = load_suite(write(tmp_path, grid))
    cells, _ = expand(suite, Only({}))
    assert any(c.job["privacy"]["unit"] == "client" for c in cells)
    for cell in cells:
        again = to_tree(load_config(suite.grids[0].job, cell.changed))
        again["tracking"] = cell.job["tracking"]
        assert again == cell.job


def test_privacy_none_takes_the_jobs_own_privacy_away_and_can_be_said_on_a_command_line(
    tmp_path: Path,
) -> None:
    from securefed.config import load_config, to_tree

    job = (
        JOB.replace("epochs = 1", "steps = 2") + 'privacy = {unit = "example", epsilon = 8.0, delta = 1e-4}\n'
    )
    suite = load_suite(write(tmp_path, '[[grid]]\nname = "g"\nprivacy = ["none", 3.0]\n', job=job))
    cells, _ = expand(suite, Only({}))
    assert [c.job["privacy"].get("epsilon") for c in cells[:2]] == [None, 3.0]
    again = to_tree(load_config(suite.grids[0].job, cells[0].changed))
    assert again["privacy"]["unit"] == "none"


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ('"sign_flip"', '"sign_flop"', "did you mean sign_flip?"),
        ('"krum"', '"krumm"', "did you mean krum?"),
        ("attack =", "atack =", "did you mean attack?"),
        ("f = [2]", "f = 2", "f is a list"),
        ("f = [2]", "f = [-1]", "from 0 on"),
        ('["none", "sign_flip"]', '["none", "none"]', "two choices of attack"),
        ('"krum"', '"nowhere.at:All"', "cannot import"),
        ('name = "small"', 'name = "small"\nprotection = ["maskin"]', "did you mean masking?"),
        ('name = "small"', 'name = "small"\nheterogeneity = ["idd"]', "did you mean iid?"),
        ('"sign_flip"', '{ name = "ipm", taw = 2.0 }', "has no option 'taw'; did you mean tau?"),
        ('"sign_flip"', '{ poison = { name = "label_flip", taget = 1 } }', "did you mean target?"),
        ('"krum"', '{ name = "krum", ff = 2 }', "has no option 'ff'; did you mean f?"),
        (
            '"krum"',
            '{ name = "pipeline", pre = [{ name = "nnm", g = 1 }], rule = "mean" }',
            "pre_aggregator nnm has no option 'g'",
        ),
        (
            'name = "small"',
            'name = "small"\nprotection = [{ name = "plain", keep_update = true }]',
            "keep_updates?",
        ),
        ('name = "small"', 'name = "small"\nheterogeneity = [{ alhpa = 0.1 }]', "did you mean alpha?"),
        ('name = "small"', 'name = "small"\nprivacy = [{ epsilonn = 3.0 }]', "did you mean epsilon?"),
        ('"krum"', '"securefed_defenses:Krumm"', "did you mean 'Krum'?"),
        ('"krum"', '"nowhere.at:All"', "beside the suite"),
        ('name = "small"', 'name = "small"\nmeasure = ["lirra"]', "did you mean lira?"),
        ('name = "small"', 'name = "small"\nmeasure = "lira"', "a list of names"),
        (
            'name = "small"',
            'name = "small"\nvary = {"train.learning_rte" = [0.1]}',
            "did you mean train.learning_rate?",
        ),
        ('name = "small"', 'name = "small"\nvary = {"train.steps" = ["two"]}', "a whole number"),
    ],
)
def test_a_wrong_name_or_value_is_one_line_with_the_nearest(
    tmp_path: Path, old: str, new: str, wanted: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        load_suite(write(tmp_path, GRID.replace(old, new)))
    assert wanted in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_job_that_cannot_run_is_refused_before_its_axes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the job by itself cannot run"):
        load_suite(write(tmp_path, job=JOB.replace("rounds = 2", "rounds = 0")))


def test_a_pool_inside_the_pool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="say --jobs"):
        load_suite(write(tmp_path, job=JOB + "engine = { workers = 2 }\n"))


def test_an_option_of_a_part_that_the_job_names_by_a_word_alone_can_vary(tmp_path: Path) -> None:
    grid = '[[grid]]\nname = "g"\nvary = { "algorithm.mu" = [0.1, 1.0] }\n'
    suite = load_suite(write(tmp_path, grid, job=JOB + 'algorithm = "fedprox"\n'))
    cells, _ = expand(suite, Only({}))
    assert {c.job["algorithm"]["mu"] for c in cells} == {0.1, 1.0}
    assert suite.grids[0].job["algorithm"] == "fedprox"


def test_a_measure_that_cannot_judge_the_job_is_a_skipped_configuration(tmp_path: Path) -> None:
    _, skipped = expand(load_suite(write(tmp_path, GRID + 'measure = ["lira"]\n')), Only({}))
    assert "set data.limit" in skipped[0].reason


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (', partition = "iid"', "", "needs records that name their client"),
        ('"digits", clients = 8', '"digits", clients = 0', "needs a number"),
        ('"digits", clients = 8, partition = "iid"', '"mine.csv", clients = 8', "set data.client_column"),
        ('name = "digits"', 'name = "digts"', "did you mean 'digits'"),
    ],
)
def test_data_that_cannot_be_divided_so_are_told_before_a_cell_is_played(
    tmp_path: Path, old: str, new: str, reason: str
) -> None:
    path = write(tmp_path, GRID.replace('["none", "sign_flip"]', '["none"]'), job=JOB.replace(old, new))
    with pytest.raises(ConfigError, match="no cell that can be played") as refused:
        plan(load_suite(path), Only({}), None)
    assert reason in str(refused.value)


def test_a_choice_that_cannot_be_divided_is_skipped_and_the_rest_is_played(tmp_path: Path) -> None:
    cells, skipped = expand(
        load_suite(write(tmp_path, GRID + 'heterogeneity = ["natural", "iid"]\n')), Only({})
    )
    assert {c.labels["heterogeneity"] for c in cells} == {"iid"}
    assert {s.labels["heterogeneity"] for s in skipped} == {"natural"}


@pytest.mark.parametrize(
    "data",
    [
        '{ name = "sentiment", clients = 8 }',
        '{ name = "mine.csv", clients = 8, client_column = "who" }',
        '{ name = "tests.benchmarks.bench.suites:Unread", clients = 8 }',
    ],
)
def test_data_that_name_their_clients_or_are_not_known_yet_are_not_refused(tmp_path: Path, data: str) -> None:
    job = JOB.replace('{ name = "digits", clients = 8, partition = "iid" }', data)
    cells, skipped = expand(load_suite(write(tmp_path, job=job)), Only({}))
    assert cells
    assert not skipped


def test_a_suite_that_nobody_knows_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"did you mean quick\?"):
        find_suite("quik")


def test_a_part_of_a_suite_is_chosen_by_axis_and_pattern(tmp_path: Path) -> None:
    suite = load_suite(write(tmp_path))
    cells, _ = expand(suite, Only.parse(["attack=sign*", "defence=krum", "defence=mean"], suite))
    assert {(c.labels["attack"], c.labels["defence"]) for c in cells} == {
        ("sign_flip", "krum"),
        ("sign_flip", "mean"),
    }


def test_only_what_claims_speak_of_is_a_part_too(tmp_path: Path) -> None:
    suite = load_suite(write(tmp_path))
    sides = [{"grid": "small", "defence": "krum"}, {"grid": "small", "attack": "none", "defence": "*an"}]
    part = Only({}, sides)
    cells, _ = expand(suite, part)
    assert count(suite, part) == len(cells) == 8
    assert {(c.labels["defence"], c.labels["attack"]) for c in cells} == {
        ("krum", "none"),
        ("krum", "sign_flip"),
        ("mean", "none"),
        ("median", "none"),
    }
    assert {c.labels["attack"] for c in expand(suite, Only({"attack": ["none"]}, sides))[0]} == {"none"}


@pytest.mark.parametrize(
    ("word", "wanted"),
    [("defense=krum", "did you mean defence?"), ("defence=krumm", "did you mean krum?"), ("smal", "small")],
)
def test_a_part_that_does_not_exist_names_the_nearest(tmp_path: Path, word: str, wanted: str) -> None:
    suite = load_suite(write(tmp_path))
    with pytest.raises(ConfigError, match=wanted.replace("?", r"\?")):
        Only.parse([word], suite)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [(3, [0, 1, 2]), ("3", [0, 1, 2]), ("2-4", [2, 3, 4]), ("0,5,7-8", [0, 5, 7, 8]), ([4, 2], [4, 2])],
)
def test_seeds_are_a_count_a_list_or_a_range(given: object, wanted: list[int]) -> None:
    assert seed_list(given, "here") == wanted


def test_the_suite_in_the_catalogue_is_one(tmp_path: Path) -> None:
    import re

    text = (Path(__file__).parents[3] / "benchmarks" / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    path = tmp_path / "suite.toml"
    path.write_text(block[1].replace(', "my_module:Attack"', ""), encoding="utf-8")
    cells, _ = expand(load_suite(path), Only({}))
    assert {c.labels["attack"] for c in cells} == {"none", "sign_flip", "ipm(tau=10.0)"}


@pytest.mark.parametrize("given", [0, "", "x", [1, 1], [-1], True, [1.5], "4-2"])
def test_seeds_that_are_none_are_refused(given: object) -> None:
    with pytest.raises(ConfigError, match="seeds"):
        seed_list(given, "here")
