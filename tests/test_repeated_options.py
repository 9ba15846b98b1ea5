"""An option of one value that is given twice is refused, in every command."""

import pytest
from conftest import run_tltools
from typer.main import get_command

from tltools import cli

cli.load_commands()
OPTIONS = [
    (name, option)
    for name, command in get_command(cli.app).commands.items()
    for option in command.params
    if option.param_type_name == "option" and not option.is_flag
]
SINGLE = [(name, option) for name, option in OPTIONS if not option.multiple]
REPEATABLE = [(name, option) for name, option in OPTIONS if option.multiple]


@pytest.mark.parametrize(
    ("command", "option"), SINGLE, ids=[f"{name} {option.opts[0]}" for name, option in SINGLE]
)
def test_two_values_of_one_option_are_refused(command, option, tmp_path):
    for first in option.opts:
        result = run_tltools(command, first, "1", option.opts[-1], "2", cwd=tmp_path)
        assert result.code == 2
        named = max(option.opts, key=len)
        assert result.err.startswith(f"error: {named} is given twice; give it once")
        assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "option", "remedy"),
    [
        ("export", "--format", ", or --format all"),
        ("export", "--precision", ", or --precision all"),
        ("train", "--model", ", or --model all"),
        ("train", "--fine-tune", ""),  # whose value all means all layers
        ("classify", "--model", ""),
    ],
)
def test_all_is_proposed_where_it_means_each(command, option, remedy, tmp_path):
    result = run_tltools(command, f"{option}=a", f"{option}=b", f"{option}=c", cwd=tmp_path)
    assert result.err.strip() == f"error: {option} is given 3 times; give it once{remedy}"


@pytest.mark.parametrize(
    ("command", "option"), REPEATABLE, ids=[f"{name} {one.opts[0]}" for name, one in REPEATABLE]
)
def test_a_repeatable_option_may_have_several_values(command, option, tmp_path):
    result = run_tltools(command, option.opts[0], "1", option.opts[0], "2", cwd=tmp_path)
    assert "is given" not in result.err


def test_the_same_value_twice_contradicts_nothing(tmp_path):
    result = run_tltools("runs", "--run-dir", "a", "--run-dir", "a", cwd=tmp_path)
    assert result.err.strip() == "error: no runs in a/: train one with tltools train"


def test_a_usage_error_is_told_as_without_the_check(tmp_path):
    result = run_tltools("train", "--epochs", "1", "--epochs", "2", "--epoch", "3", cwd=tmp_path)
    assert "no such option --epoch; did you mean --epochs?" in result.err
