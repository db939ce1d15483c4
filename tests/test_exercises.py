"""The exercises prove of themselves what they ask of a learner: stubs fail, solutions pass, mistakes are recognised."""

import ast
import contextlib
import inspect
import json
import os
import re
import shutil
import signal
import sys
import types

import pytest
import torch
from conftest import MODULES, ROOT

sys.path.insert(0, str(ROOT / "exercises"))
import check as program
from compare import NotYet, expect, same

program.SECONDS = 600  # a busy machine is no endless loop
EXERCISES = program.exercises()
OPEN = {path.stem: path for path in sorted((ROOT / "exercises" / "open").glob("o*.py"), key=lambda path: int(path.stem[1:]))}
every_exercise = pytest.mark.parametrize("exercise", EXERCISES.values(), ids=EXERCISES)
OF_ANY_FORM = {"ex05_3", "ex07_1"}  # an answer is judged by its properties: there is no right value to be twice of


def source(exercise):
    """The text of a solution above its MUTANTS, and these."""
    text = exercise.beside("solutions").read_text(encoding="utf-8")
    names = {}
    exec(compile(text, "solution", "exec"), names)
    return text.split("\n\nMUTANTS")[0], names["MUTANTS"]


def answer(text):
    """The names that an answer defines."""
    module = types.ModuleType("answer")
    exec(compile(text, "<answer>", "exec"), module.__dict__)
    return module


def verdict(exercise, load, seed=0):
    return program.judge(exercise, load, {"<answer>"}, seed)


# %% The forty exercises


def test_there_are_forty_and_each_has_its_three_files():
    assert len(EXERCISES) == 40
    per_module = [sum(id.startswith(f"ex{number:02d}") for id in EXERCISES) for number in range(1, 11)]
    assert per_module == [5, 4, 4, 4, 4, 4, 5, 3, 3, 4]
    for folder in ("checks", "solutions"):
        assert sorted(path.stem for path in (ROOT / "exercises" / folder).glob("ex*.py")) == list(EXERCISES)


@every_exercise
def test_a_stub_is_not_started(exercise):
    assert verdict(exercise, lambda: answer(exercise.text))[0] == "not started"


@every_exercise
def test_a_solution_passes_whatever_the_seed(exercise):
    text, _ = source(exercise)
    assert [verdict(exercise, lambda: answer(text), seed) for seed in (0, 1, 2)] == 3 * [("solved", "")]


@every_exercise
def test_each_mutant_is_rejected_with_its_own_words(exercise):
    text, mutants = source(exercise)
    assert len(mutants) >= 4
    assert len({words for *_, words in mutants}) == len(mutants)
    wrong = []
    for right, mistake, words in mutants:
        assert text.count(right) == 1, right
        assert right != mistake
        mutated = text.replace(right, mistake)
        state, message = verdict(exercise, lambda mutated=mutated: answer(mutated))
        if state != "not yet" or words not in message or "does not know that mistake" in message or not message.isascii():
            wrong.append((mistake, words, state, message))
    assert not wrong


def told(id, right, wrong, seed=0):
    """What is said of a solution in which this was replaced."""
    text, _ = source(EXERCISES[id])
    assert text.count(right) == 1
    return verdict(EXERCISES[id], lambda: answer(text.replace(right, wrong)), seed)


def test_old_chains_that_are_written_back_are_not_said_to_be_unmoved():
    _, message = told("ex07_2", "new[index] = moved", "new[index] = chains")
    assert "before they moved" in message
    assert "are not moved" not in message


SOLVE = "torch.linalg.solve((torch.eye(n, dtype=K.dtype) - K + 1).T, torch.ones_like(q))"


@pytest.mark.parametrize("k", [1, 20, 50, 10_000])
def test_infinity_is_not_a_large_k(k):
    for seed in range(3):
        state, message = told("ex05_1", SOLVE, f"q @ torch.linalg.matrix_power(K, {k})", seed)
        assert state == "not yet"
        assert message.endswith("\nk = inf is not a large k: a slow chain has not arrived.")


def test_infinity_may_be_squared_twenty_times_or_be_an_eigenvector():
    eigenvector = "(lambda w, v: (v / v.sum(0))[:, w.real.argmax()].real)(*torch.linalg.eig(K.T))"
    for how in ("q @ torch.linalg.matrix_power(K, 2**20)", eigenvector):
        assert [told("ex05_1", SOLVE, how, seed) for seed in range(3)] == 3 * [("solved", "")]
    overflow = [told("ex05_1", SOLVE, "q @ torch.linalg.matrix_power(K, 2**62)", seed) for seed in range(3)]
    assert all("Divide by the sum" in message for _, message in overflow)


@pytest.mark.parametrize("start", ["(0.0, 0.0)", "(float(cover(p, axis)[0]), math.log(float(cover(p, axis)[1])))"])
def test_one_search_finds_the_shallow_valley(start):
    for seed in range(3):
        _, message = told("ex01_4", "(axis[mode].item(), -0.5)", start, seed)
        assert message.endswith("there is a deeper one: start the search at the other mode too.")


def test_there_are_thirteen_open_experiments():
    assert list(OPEN) == [f"o{number}" for number in range(1, 14)]


def test_there_are_mutants_enough():
    assert sum(len(source(exercise)[1]) for exercise in EXERCISES.values()) >= 160


def changed(value, how):
    """A result with each of its numbers changed."""
    if isinstance(value, tuple | list):
        return tuple(changed(part, how) for part in value)
    return how(value)


def cast(value):
    return value.float() if torch.is_tensor(value) and value.ndim else None


GENERIC = {
    "None": (lambda value: None, "is None"),
    "zeros": (lambda value: 0 * value, "is 0"),
    "minus": (lambda value: -value, "is -1 times"),
    "twice": (lambda value: 2 * value, "is 2 times"),
    "half": (lambda value: value / 2, "is 1/2 times"),
    "nan": (lambda value: value * torch.nan, "nan"),
    "a list": (lambda value: [value, value], "2 values"),
    "a string": (lambda value: "1", "type str"),
    "another shape": (lambda value: torch.as_tensor(value)[None], "has shape|should be a number"),
    "float32": (cast, "torch.float32|is None"),
}


def spoilt(text, name, how):
    """An answer, one of whose functions returns what `how` makes of the right result."""
    learner = answer(text)
    right = getattr(learner, name)
    if inspect.isclass(right):
        right.forward = lambda self, x, forward=right.forward: how(forward(self, x))
        return learner
    wrapped = lambda *inputs: changed(right(*inputs), how)  # noqa: E731
    wrapped.__name__, wrapped.__signature__ = name, inspect.signature(right)
    setattr(learner, name, wrapped)
    return learner


@every_exercise
def test_what_is_wrong_anywhere_is_recognised_everywhere(exercise):
    text, _ = source(exercise)
    for name in exercise.names:
        for how, words in GENERIC.values():
            state, message = verdict(exercise, lambda name=name, how=how: spoilt(text, name, how))
            if exercise.id not in OF_ANY_FORM:
                assert state == "not yet"
                assert re.search(words, message), (words, message)
                assert message.isascii()
            elif words in ("is None", "type str", "nan"):
                assert state == "not yet"


@every_exercise
def test_an_input_that_is_changed_is_noticed(exercise):
    text, _ = source(exercise)
    for name in exercise.names:
        learner = answer(text)
        right = getattr(learner, name)
        seen = []

        def wrapped(*inputs, right=right, seen=seen):
            result = right(*inputs)
            flat = [part for value in inputs for part in (value if isinstance(value, tuple) else (value,))]
            for value in flat:
                if torch.is_tensor(value) and value.dtype == torch.float64 and not value.requires_grad:
                    seen.append(value.add_(1))
                    break
            return result

        if not inspect.isclass(right):
            wrapped.__name__, wrapped.__signature__ = name, inspect.signature(right)
            setattr(learner, name, wrapped)
            state, message = verdict(exercise, lambda learner=learner: learner)
            assert (state == "not yet" and "changes its argument" in message) or not seen, message


@every_exercise
def test_a_stub_says_what_its_solution_does(exercise):
    stub, solution = (ast.parse(text) for text in (exercise.text, source(exercise)[0]))
    signature = lambda tree: {  # noqa: E731
        (node.name, ast.unparse(node.args) if isinstance(node, ast.FunctionDef) else "", ast.get_docstring(node))
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in exercise.names
    }
    assert signature(stub) == signature(solution)
    assert {name for name, *_ in signature(stub)} == set(exercise.names)


@every_exercise
def test_a_statement_is_whole_and_printable(exercise):
    title, level, minutes = exercise.heading
    assert 1 <= int(level) <= 3
    assert 5 <= int(minutes) <= 40
    assert len(title) <= 62
    for word in ("Shapes   ", "Source   ", "Read     "):
        assert f"\n{word}" in exercise.statement
    for path in (exercise.stub, exercise.beside("checks")):
        assert path.read_text(encoding="utf-8").isascii()
    hints = program.execute(exercise.beside("checks")).HINTS
    assert len(hints) == 3
    assert len(set(hints)) == 3


@every_exercise
def test_the_section_to_read_is_there(exercise):
    read = exercise.statement.split("\nRead     ")[1]
    files = re.findall(r"\d\d_\w+\.py", read)
    assert files or exercise.id >= "ex09"
    texts = [(ROOT / file).read_text(encoding="utf-8") for file in files]
    known = [section for text in texts for section in re.findall(r'^    "(\w+)": section_', text, re.MULTILINE)]
    named = [word for part in re.findall(r"\.py, sections? ([\w ]+)", read) for word in part.split() if word != "and"]
    assert set(named) <= set(known)
    assert len(named) >= len(files)


@every_exercise
def test_an_oracle_is_its_own(exercise):
    """It imports neither a solution nor a module, and nothing that a learner does not have."""
    tree = ast.parse(exercise.beside("checks").read_text(encoding="utf-8"))
    imported = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= {"compare", "torch", "math", "decimal", "itertools", "numpy", "scipy"}
    loads = {"exec", "eval", "open", "compile", "__import__"}
    assert not loads & {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def test_modules_name_their_exercises():
    """Each docstring that has a line of exercises names all of its own."""
    for path in MODULES:
        text, number = path.read_text(encoding="utf-8").split('"""')[1], path.name[:2]
        line = re.search(r"Exercises +(.+)", text)
        assert line, path.name
        own = [id for id in EXERCISES if id[2:4] == number]
        named = re.findall(r"ex\d\d_\d", line[1])
        assert named == ([own[0], own[-1]] if "..." in line[1] else own), path.name
        assert set(re.findall(r"\bo\d+", line[1])) <= set(OPEN)


def test_the_table_is_the_programs_own(capsys):
    program.main(["--list", "--markdown"])
    assert capsys.readouterr().out.strip() in (ROOT / "exercises" / "README.md").read_text(encoding="utf-8")


# %% Comparing


def complaint(got, want, **options):
    with pytest.raises(NotYet) as caught:
        expect(lambda: got, (), want, name="it", **options)
    return str(caught.value)


def test_values_that_are_recognised_anywhere():
    want = torch.arange(1.0, 7, dtype=torch.float64).view(2, 3) ** 2
    square = want[:, :2]
    assert "is -1 times" in complaint(-want, want)
    assert "is 30 times" in complaint(30 * want, want, scales={"30": 30.0})
    assert "is 1/N times" in complaint(want / 30, want, scales={"N": 30})
    assert "off by the same 0.5" in complaint(want + 0.5, want)
    assert "got -inf, want 0 at [0, 0]" in complaint(torch.full_like(want, -torch.inf), want - 1)
    assert "shape (3, 2)" in complaint(want.T, want)
    assert "transposed" in complaint(want.T, want)
    assert "transposed" in complaint(square.T, square)
    assert "reversed order" in complaint(want.flip(1), want)
    assert "float32?" in complaint(want * (1 + 1e-5 * torch.randn_like(want)), want)
    assert "got 9, want 4 at [0, 1]" in complaint(want + 5 * (want == 4), want)
    assert "should be 2 values" in complaint(want, (want, want))
    assert "known" in complaint(3 * want, want, wrong={"known": 3 * want})
    assert "shape" in complaint(want[None], want, wrong={"shape": want[None]})


def test_what_is_right_passes():
    want = torch.tensor([1.0, torch.inf, -2.0], dtype=torch.float64)
    expect(lambda: want * (1 + 1e-9), (), want)
    expect(lambda: torch.tensor(2), (), 2.0)
    expect(lambda: [1, want], (), (1.0, want))
    assert not same(want, -want)
    assert not same(torch.tensor([1.0, 2.0]), torch.tensor([1.0, torch.inf]))


def test_two_calls_that_differ_are_noticed():
    with pytest.raises(NotYet, match="two calls"):
        expect(lambda x: x + torch.rand(1).double(), (torch.ones(3, dtype=torch.float64),), torch.zeros(3).double())


def test_an_argument_that_comes_back_is_named():
    x = torch.ones(3, dtype=torch.float64)
    with pytest.raises(NotYet, match="the argument x, unchanged"):
        expect(lambda x: x, (x,), torch.tensor([1.0, 3.0, 4.0]).double())


# %% The program


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A learner's copy of the exercises: (their folder, a way to write an answer)."""
    folder = tmp_path / "exercises"
    shutil.copytree(ROOT / "exercises", folder, ignore=shutil.ignore_patterns("mine", ".progress*", "__pycache__"))
    monkeypatch.setattr(program, "HERE", folder)
    monkeypatch.chdir(tmp_path)

    def write(id, text=None, end=""):
        exercise = program.exercises()[id]
        exercise.start().write_text((source(EXERCISES[id])[0] if text is None else text) + end, encoding="utf-8")

    return folder, write


def said(capsys, *words):
    """(exit status, what was printed)."""
    try:
        status = program.main(list(words))
    except SystemExit as stop:
        return 1, str(stop.code)
    return status, capsys.readouterr().out


def test_a_fresh_clone_shows_the_first_exercise(desk, capsys):
    status, text = said(capsys)
    assert status == 1
    assert (desk[0] / "mine" / "ex01_1_boltzmann.py").exists()
    assert os.path.join("exercises", "mine", "ex01_1_boltzmann.py") in text
    assert "p_i = exp(-E_i / T) / Z" in text
    assert "ex01_1 boltzmann: not started" in text
    assert text.isascii()
    assert "\033" not in text  # colour belongs on terminals only


def test_solved_is_remembered_until_answer_or_check_changes(desk, capsys):
    folder, write = desk
    write("ex01_1")
    assert said(capsys, "ex01_1")[0] == 0
    assert "1 of 40" in said(capsys, "--list")[1]
    assert "ex01_2 langevin_step: not started" in said(capsys)[1]
    write("ex01_1", end="\n# a thought\n")
    assert "0 of 40" in said(capsys, "--list")[1]
    assert "1 of 40" in said(capsys, "ex01_1")[1]
    with (folder / "checks" / "ex01_1.py").open("a", encoding="utf-8") as check:
        check.write("\n# stricter\n")
    assert re.search(r"ex01_1 .*not yet", said(capsys, "--list")[1])


def test_two_that_are_solved_at_once_are_both_remembered(desk):
    for id in ("ex01_1", "ex02_1"):
        desk[1](id)
        program.check_file(program.exercises()[id])
    assert list(program.read_progress()["solved"]) == ["ex01_1", "ex02_1"]


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"solved": {}, "hints": {"ex01_1": "2"}}', "\udcff"])
def test_damaged_progress_is_set_aside(desk, capsys, damage):
    path = desk[0] / ".progress.json"
    path.write_bytes(damage.encode("utf-8", "surrogateescape"))
    status, text = said(capsys, "--list")
    assert status == 0
    assert "damaged" in text
    assert f"{program.command('--all')}\n" in text
    assert (desk[0] / ".progress.damaged.json").exists()
    assert not path.exists()
    assert "damaged" not in said(capsys, "--list")[1]


def test_each_damaged_progress_has_its_own_place(desk, capsys):
    for text, place in (("{1", ".progress.damaged.json"), ("{2", ".progress.damaged2.json")):
        (desk[0] / ".progress.json").write_text(text, encoding="utf-8")
        assert f"set aside as {place}." in said(capsys, "--list")[1]
    for text, place in (("{1", ".progress.damaged.json"), ("{2", ".progress.damaged2.json")):
        assert (desk[0] / place).read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def boltzmann(energies, T)\n    return 1\n", "line 1 cannot be read"),
        (
            "def boltzmann(energies, T):\n    return 1 / 0\n",
            "line 2 stops with ZeroDivisionError: division by zero\n  return 1 / 0",
        ),
        ("def boltzmann(energies, T):\n    return energie\n", "NameError"),
        ("def boltzman(energies, T):\n    return 1\n", "there is no boltzmann"),
        ("def boltzmann(energies):\n    return 1\n", "takes 1 positional argument"),
        ("import sys\nsys.exit(3)\n", "stops with SystemExit"),
        ("def boltzmann(energies, T):\n    return boltzmann(energies, T)\n", "RecursionError"),
        ("import nothing_like_this\n", "ModuleNotFoundError"),
        ("open('nothing like this')\n", "line 1 stops with FileNotFoundError"),
        ("def boltzmann(energies, T):\n    print('caf\\u00e9')\n", "is None: is there a return?"),
        ("boltzmann = 3\n", "there is no boltzmann"),
    ],
)
def test_an_answer_that_breaks_is_told_in_one_sentence(desk, capsys, text, words):
    desk[1]("ex01_1", text)
    status, said_of_it = said(capsys, "ex01_1")
    assert status == 1
    assert words in said_of_it.replace("\n    ", "\n  ").replace("\n  return", "\n  return")
    assert "Traceback" not in said_of_it
    assert f"Hint 1 of 3: python {os.path.join('exercises', 'check.py')} --hint ex01_1" in said_of_it


def test_a_syntax_error_stops_one_exercise_only(desk, capsys):
    desk[1]("ex02_1", "def (\n")
    desk[1]("ex02_2")
    status, text = said(capsys, "ex02")
    assert status == 1
    assert "ex02_2 hebb_from_bits: solved" in text
    assert len(re.findall(r"^ex02_\d", text, re.MULTILINE)) == 4


def test_an_endless_loop_is_ended(desk, capsys, monkeypatch):
    monkeypatch.setattr(program, "SECONDS", 0.3)
    desk[1]("ex01_1", "def boltzmann(energies, T):\n    while True:\n        pass\n")
    assert "still running after 0.3 seconds" in said(capsys, "ex01_1")[1]


def test_a_deleted_file_comes_back_as_the_stub(desk, capsys):
    desk[1]("ex01_1")
    said(capsys, "ex01_1")
    program.exercises()["ex01_1"].mine.unlink()
    assert "0 of 40" in said(capsys, "--list")[1]
    assert "ex01_1 boltzmann: not started" in said(capsys)[1]


def test_hints_come_one_by_one(desk, capsys):
    texts = [said(capsys, "--hint", "ex04_2")[1] for _ in range(4)]
    assert [text[:11] for text in texts] == ["Hint 1 of 3", "Hint 2 of 3", "Hint 3 of 3", "Hint 3 of 3"]
    assert said(capsys, "--hint", "ex04_2", "1")[1] == texts[0]
    assert "hints 1 to 3" in said(capsys, "--hint", "ex04_2", "7")[1]


def test_a_hint_without_an_id_is_of_the_current_exercise(desk, capsys):
    assert said(capsys, "--hint")[1].startswith("Hint 1 of 3 (ex01_1): ")
    assert said(capsys, "--hint", "3")[1].startswith("Hint 3 of 3 (ex01_1): ")
    desk[1]("ex01_1")
    assert "Solved: 1 of 40." in said(capsys, "ex01_1")[1]
    assert said(capsys, "--hint")[1].startswith("Hint 1 of 3 (ex01_2): ")


@pytest.mark.parametrize(
    "word",
    ["exercises/mine/ex03_1_p_up.py", "exercises\\mine\\ex03_1_p_up.py", "ex03_1_p_up.py", "ex03_1_p_up", "ex03_1.py"],
)
def test_a_file_is_accepted_as_an_id(desk, capsys, word):
    desk[1]("ex03_1")
    assert "ex03_1 p_up: solved" in said(capsys, word)[1]
    assert "(ex03_1)" in said(capsys, "--hint", word, "2")[1]
    program.check(word, answer(source(EXERCISES["ex03_1"])[0]).p_up)
    assert "ex03_1 p_up: solved" in capsys.readouterr().out
    assert "there is no exercise 'ex03_1_other.py'" in said(capsys, "ex03_1_other.py")[1]


def test_a_solution_is_shown_after_it_passes_or_on_giving_up(desk, capsys):
    assert "--give-up" in said(capsys, "--solution", "ex01_1")[1]
    for shown in (("--give-up",), ()):
        status, text = said(capsys, "--solution", "ex01_1", *shown)
        assert status == 0
        assert "def boltzmann" in text
        assert "MUTANTS" not in text
        desk[1]("ex01_1")
        said(capsys, "ex01_1")


def test_reset_keeps_what_was_there(desk, capsys):
    """The mistake: a second reset that writes over what the first one kept."""
    mine = program.exercises()["ex01_1"].mine
    for suffix in (".bak", ".bak2", ".bak3"):
        desk[1]("ex01_1", f"kept as {suffix}\n")
        said(capsys, "--reset", "ex01_1")
        assert mine.with_suffix(suffix).read_text(encoding="utf-8") == f"kept as {suffix}\n"
    assert mine.with_suffix(".bak").read_text(encoding="utf-8") == "kept as .bak\n"
    assert "NotImplementedError" in mine.read_text(encoding="utf-8")


def test_what_does_not_exist_is_said(desk, capsys):
    assert "there is no exercise 'ex99'" in said(capsys, "ex99")[1]
    assert "which exercise?" in said(capsys, "--reset")[1]
    assert "--list" in said(capsys, "--solution")[1]


def test_in_a_notebook(desk, capsys):
    text, _ = source(EXERCISES["ex02_1"])
    program.check("ex02_1", answer(text).flip_costs)
    assert "ex02_1 flip_costs: solved" in capsys.readouterr().out
    assert re.search(r"ex02_1 .*solved", said(capsys, "--list")[1])
    program.check("ex02_1", answer(text.replace("2 * s", "1 / 0 * s")).flip_costs)
    assert "line 7 stops with ZeroDivisionError" in capsys.readouterr().out
    program.check("ex02_9", print)
    assert "there is no exercise 'ex02_9'" in capsys.readouterr().out


def test_in_a_notebook_what_is_not_asked_for_is_refused_in_one_line(desk, capsys):
    def f():
        pass

    for functions, words in (
        ([f], "got f; this exercise wants langevin_step and stationary_variance, by these names\n"),
        ([], "got no function; this exercise wants langevin_step and stationary_variance, by these names\n"),
        ([3], "an argument of type int is no function: check('ex01_2', langevin_step, stationary_variance)\n"),
        (
            [torch.nn.Identity()],
            "an argument of type Identity is no function: check('ex01_2', langevin_step, stationary_variance)\n",
        ),
    ):
        program.check("ex01_2", *functions)
        assert capsys.readouterr().out == words
    program.check("ex01_1", f, f)
    assert capsys.readouterr().out == "got f and f; this exercise wants boltzmann, by this name\n"


def test_watching_goes_on_when_a_file_is_saved(desk, capsys, monkeypatch):
    saves = iter([("ex01_1", "def boltzmann(energies, T):\n    return None\n"), ("ex01_1", None), "Ctrl-C"])

    def sleep(_):
        save = next(saves)
        if save == "Ctrl-C":
            raise KeyboardInterrupt
        desk[1](*save)
        path = program.exercises()[save[0]].mine
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))

    monkeypatch.setattr(program.time, "sleep", sleep)
    status, text = said(capsys, "--watch")
    assert status == 130
    assert re.findall(r"^ex01_\d \w+: .*", text, re.MULTILINE) == [
        "ex01_1 boltzmann: not started",
        "ex01_1 boltzmann: not yet",
        "ex01_1 boltzmann: solved",
        "ex01_2 langevin_step: not started",
    ]
    assert text.endswith("stopped\n")


def test_when_all_are_solved(desk, capsys):
    for id in list(EXERCISES)[1:]:
        desk[1](id)
    assert said(capsys, "--all")[0] == 1
    desk[1]("ex01_1")
    assert said(capsys, "--all")[0] == 0
    status, text = said(capsys)
    assert status == 0
    assert "All 40 are solved" in text
    assert "40 of 40" in said(capsys, "--list")[1]


@pytest.mark.skipif(os.name == "nt", reason="a pseudo-terminal")
def test_at_a_terminal(desk):
    """As a learner: a wrong answer under --watch, in colour, until Ctrl-C."""
    import pty

    def typed(*words, keys=b"", after=b""):
        pid, terminal = pty.fork()
        if pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore Ctrl-C, and so would this
            os.execv(sys.executable, [sys.executable, str(desk[0] / "check.py"), *words])
        seen = b""
        with contextlib.suppress(OSError):  # a terminal whose program has ended
            while part := os.read(terminal, 4096):
                seen += part
                if keys and after in seen:
                    os.write(terminal, keys)
                    keys = b""
        os.close(terminal)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen.decode().replace("\r\n", "\n")

    desk[1]("ex01_1", source(EXERCISES["ex01_1"])[0].replace("-(energies", "(energies"))
    status, text = typed("--watch", keys=b"\x03", after=b"Waiting for you to save")
    assert status == 130
    assert "ex01_1 boltzmann: \033[33mnot yet\033[0m" in text
    assert "The sign is reversed" in text
    assert "\nstopped" in text
    assert "Traceback" not in text


# %% The open experiments

every_experiment = pytest.mark.parametrize("name", OPEN)


def pilot(name):
    """Our answer to an open experiment, and the mistakes planted in it."""
    solution = program.execute(ROOT / "exercises" / "solutions" / f"{name}.py")
    return json.loads((ROOT / "exercises" / "solutions" / f"{name}.json").read_text(encoding="utf-8")), solution.MUTANTS


@every_experiment
def test_a_pilot_is_accepted(name, capsys, tmp_path):
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(pilot(name)[0]), encoding="utf-8")
    status, text = said(capsys, "--open", name, str(path))
    assert (status, text[: len(name) + 8]) == (0, f"{name}: solved"), text


@every_experiment
def test_an_invented_table_is_rejected_with_its_own_words(name, capsys, tmp_path):
    path, wrong = tmp_path / "answer.json", []
    _, mutants = pilot(name)
    assert len(mutants) >= 6
    assert {"flat", "reversed", "one seed"} <= {what for what, *_ in mutants}
    for what, plant, words in mutants:
        answer, _ = pilot(name)
        plant(answer)
        path.write_text(json.dumps(answer), encoding="utf-8")
        status, text = said(capsys, "--open", name, str(path))
        if status != 1 or words not in text or not text.isascii():
            wrong.append((what, words, status, text))
    assert not wrong


@every_experiment
def test_a_statement_of_an_experiment_is_whole(name, capsys):
    status, text = said(capsys, "--open", name)
    assert status == 0
    assert re.match(rf"{name} .+\(modules? \d\d.*minutes\)\n", text)
    assert "\nAnswer   " in text
    assert "\nChecked  " in text
    assert "redict" in text
    assert text.isascii()


def test_an_answer_that_cannot_be_read(desk, capsys, tmp_path):
    assert said(capsys, "--open", "o2", "nowhere.json") == (1, "there is no file nowhere.json")
    for text, kind in (
        ("[]", "a list"),
        ("3", "a number"),
        ('"o2"', "a string"),
        ("null", "null"),
        ("true", "true or false"),
    ):
        (tmp_path / "other.json").write_text(text, encoding="utf-8")
        status, message = said(capsys, "--open", "o2", "other.json")
        assert (status, message) == (1, f"the answer should be an object {{...}}, not {kind}")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    assert "cannot be read" in said(capsys, "--open", "o2", "broken.json")[1]
    assert "there is no experiment 'o99'" in said(capsys, "--open", "o99")[1]
    assert re.findall(r"^o\d+", said(capsys, "--open")[1], re.MULTILINE) == list(OPEN)
