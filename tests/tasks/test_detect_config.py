"""Options: typed, JSON in and out, flags of the same names."""

import inspect
import json

import pytest

from keras_lightnets.tasks.commands import command
from keras_lightnets.tasks.config import ConfigError, TaskConfig
from keras_lightnets.tasks.detector import DetectConfig
from keras_lightnets.tasks.recipes import RECIPES
from keras_lightnets.tasks.schedules import average_decay, warmup_cosine


@pytest.mark.parametrize("recipe", RECIPES["detect"])
def test_recipe_fills_what_is_not_given(recipe):
    config = DetectConfig(recipe=recipe, epochs=7)
    assert config.epochs == 7
    for key, value in RECIPES["detect"][recipe].items():
        assert key == "epochs" or getattr(config, key) == value


def test_json_round_trip(tmp_path):
    config = DetectConfig(recipe="demo", labels=("a", "b"), head_options={"width": 0.5})
    (tmp_path / "c.json").write_text(config.to_json())
    assert DetectConfig.load(tmp_path / "c.json") == config


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"epohcs": 3}, "Unknown option 'epohcs'. Did you mean 'epochs'?"),
        ({"epochs": 0}, "Option 'epochs': .*greater than or equal to 1.*Received: 0"),
        ({"optimizer": "adam"}, "Option 'optimizer': .*'adamw' or 'sgd'"),
        ({"recipe": "finetun"}, "Unknown recipe.*Did you mean 'finetune'"),
    ],
)
def test_illegal_option_names_legal_ones(values, text):
    with pytest.raises(ConfigError, match=text):
        DetectConfig.parse(values)


def test_constructor_suggests_the_closest_option():
    with pytest.raises(ValueError, match="Did you mean 'learning_rate'"):
        DetectConfig(learnin_rate=1)


def test_broken_json_names_line_and_column(tmp_path):
    (tmp_path / "c.json").write_text('{"epochs": 3,\n "name" "x"}')
    with pytest.raises(ConfigError, match="line 2 column 9"):
        DetectConfig.load(tmp_path / "c.json")


def test_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        DetectConfig().epochs = 3


def test_flags_are_the_fields():
    verb = command(DetectConfig, lambda config: {})
    names = set(inspect.signature(verb).parameters)
    assert names == {*DetectConfig.model_fields, "config", "json"}
    assert set(TaskConfig.model_fields) < names


def collect(options):
    import typer
    from typer.testing import CliRunner

    seen = []
    app = typer.Typer()
    app.command()(command(options, lambda config: seen.append(config) or {"ok": 1}))

    def invoke(*words):
        return CliRunner().invoke(app, list(words)), seen

    return invoke


def test_flags_win_over_file_and_recipe(tmp_path):
    (tmp_path / "c.json").write_text('{"epochs": 5, "seed": 4, "recipe": "scratch"}')
    result, seen = collect(DetectConfig)(
        *("--config", str(tmp_path / "c.json"), "--seed", "9", "--freeze-bn"),
        *("--weights", "none", "--labels", "cat, dog", "--json"),
        *("--head-options", '{"width": 0.5}'),
    )
    assert json.loads(result.stdout) == {"ok": 1}
    (config,) = seen
    assert (config.epochs, config.seed, config.optimizer) == (5, 9, "sgd")
    assert config.freeze_bn
    assert config.weights is None
    assert config.labels == ("cat", "dog")
    assert config.head_options == {"width": 0.5}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--epochs", "many"), "epochs"),
        (("--head-options", "{"), "--head-options must be a JSON object"),
        (("--config", "absent.json"), "Cannot read absent.json"),
    ],
)
def test_bad_flag_is_one_json_error(words, text):
    result, seen = collect(DetectConfig)(*words, "--json")
    assert result.exit_code == 2
    assert text in json.loads(result.stdout)["error"]
    assert not seen


def test_unknown_flag_suggests_the_closest():
    result, _ = collect(DetectConfig)("--epohcs", "3")
    assert result.exit_code == 2
    assert "--epochs" in result.output


def test_unknown_key_in_file_suggests_the_closest(tmp_path):
    (tmp_path / "c.json").write_text('{"bacth_size": 4}')
    result, _ = collect(DetectConfig)("--config", str(tmp_path / "c.json"), "--json")
    assert "Did you mean 'batch_size'" in json.loads(result.stdout)["error"]


def test_rate_rises_linearly_and_falls_to_the_final_share():
    config = DetectConfig(
        epochs=4, learning_rate=1.0, warmup_epochs=1.0, final_rate=0.1
    )
    rates = [warmup_cosine(config, 5, step) for step in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in zip(rates[5:], rates[6:], strict=False))


def test_average_fits_into_short_runs():
    config = DetectConfig(ema=0.999)
    assert average_decay(config, 10) == 0.0
    assert average_decay(config, 200) == pytest.approx(0.9)
    assert average_decay(config, 10**6) == 0.999
