"""Exercises that check themselves.

    python exercises/check.py              the next unsolved one: its file, its statement, its diagnosis
      ex04_2 | ex04 | --all                one; a module's; all (exit 1 unless all pass)
      --list [--markdown]                  id, title, level, minutes, state
      --watch [ex04_2]                     check again each time you save; Ctrl-C ends it
      --hint [ex04_2] [2]                  the next hint, or hint 2, of this exercise or of the next unsolved one
      --solution ex04_2 [--give-up]        after it passes; before that, only if you give up
      --reset ex04_2                       the stub again; your file is kept as .bak
      --open [o2 [answer.json]]            the open experiments; what one asks; what your answer to it is worth

An exercise is named by its id or by its file: exercises/mine/ex04_2_cd_gradient.py.

You write in exercises/mine/, where a stub is copied when you first ask for it. In a notebook:

    import sys; sys.path.insert(0, "exercises")
    from check import check
    check("ex04_2", cd_gradient)
"""

import _thread
import argparse
import contextlib
import hashlib
import inspect
import itertools
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
import traceback
import types
from pathlib import Path
from typing import NamedTuple

import torch

from compare import NotYet

HERE = Path(__file__).resolve().parent
SECONDS = 20  # what one check may take: longer is an endless loop
STATES = ("not started", "not yet", "solved")


# %% The exercises and what is known of them


class Exercise(NamedTuple):
    """One exercise: its id, and its stub (which holds its title, level, minutes and statement)."""

    id: str
    stub: Path

    @property
    def text(self):
        return self.stub.read_text(encoding="utf-8")

    @property
    def statement(self):
        return self.text.split('"""')[1].strip()

    @property
    def heading(self):
        """Title, level, minutes, from the statement's first line."""
        return re.match(r"ex\d\d_\d (.+) \(level (\d), (\d+) minutes\)$", self.statement.splitlines()[0]).groups()

    @property
    def names(self):
        """What the learner writes: the functions and classes of the stub."""
        return re.findall(r"^(?:def|class) (\w+)\(", self.text, re.MULTILINE)

    @property
    def mine(self):
        return HERE / "mine" / self.stub.name

    def beside(self, folder):
        return HERE / folder / f"{self.id}.py"

    def start(self):
        """The learner's file; a stub is copied there if there is none."""
        if not self.mine.exists():
            self.mine.parent.mkdir(exist_ok=True)
            shutil.copy(self.stub, self.mine)
        return self.mine


def exercises():
    """All exercises in order: {id: Exercise}."""
    return {path.stem[:6]: Exercise(path.stem[:6], path) for path in sorted(HERE.glob("ex[0-9][0-9]_[0-9]_*.py"))}


def id_of(word):
    """The id in a word that names an exercise by id, file name or path; any other word as it is."""
    stem = re.split(r"[/\\]", str(word))[-1].removesuffix(".py").lower()
    return next((one.id for one in exercises().values() if stem in (one.id, one.stub.stem)), str(word))


def execute(path):
    """A file's names, executed anew; its text is compiled as it stands, in whatever encoding it declares."""
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))
    exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    return module


def fingerprint(exercise, answer=None):
    """A hash of answer and check: who changes either has to check again. A notebook's answer has no file."""
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in (answer, exercise.beside("checks")) if path]
    return hashlib.sha256("\n".join("\n".join(texts).splitlines()).encode()).hexdigest()[:16]


def read_progress():
    """What is solved and which hints were seen. A damaged file is set aside, and never fatal."""
    path = HERE / ".progress.json"
    try:
        progress = json.loads(path.read_text(encoding="utf-8"))
        kinds = {"solved": str, "hints": int}
        if all(isinstance(value, kind) for part, kind in kinds.items() for value in progress[part].values()):
            return progress
    except FileNotFoundError:
        return {"solved": {}, "hints": {}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    names = (path.with_name(f".progress.damaged{number}.json") for number in ("", *range(2, 1000)))
    aside = next(name for name in names if not name.exists())
    try:
        path.replace(aside)
        print(f".progress.json was damaged; it is set aside as {aside.name}. Check what you solved: {command('--all')}")
    except OSError as error:
        print(f".progress.json is damaged, and cannot be set aside: {error}")
    return {"solved": {}, "hints": {}}


def remember(part, exercise, value):
    """Write down one fact, beside what another check may have written meanwhile."""
    progress = read_progress()
    if progress[part].get(exercise.id) == value:
        return
    progress[part][exercise.id] = value
    path = HERE / ".progress.json"
    partial = path.with_name(f".progress.{os.getpid()}.tmp")
    try:
        partial.write_text(json.dumps(progress, indent=1), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        print(f"progress is not saved: {error}")


def state_of(exercise, progress):
    """Not started, not yet or solved, without running anything."""
    mark = progress["solved"].get(exercise.id)
    if mark and mark == fingerprint(exercise):  # in a notebook
        return "solved"
    if not exercise.mine.exists() or exercise.mine.read_bytes() == exercise.stub.read_bytes():
        return "not started"
    return "solved" if mark == fingerprint(exercise, exercise.mine) else "not yet"


# %% Judging


@contextlib.contextmanager
def at_most(seconds):
    """Interrupt what runs longer, by the interpreter's own Ctrl-C, which every system has."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    rang, thread = threading.Event(), threading.get_ident()

    def ring():
        rang.set()
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(thread, signal.SIGINT)
        else:
            _thread.interrupt_main()

    timer, before = threading.Timer(seconds, ring), signal.signal(signal.SIGINT, signal.default_int_handler)
    timer.daemon = True
    timer.start()
    try:
        yield
    except KeyboardInterrupt:
        if rang.is_set():
            raise NotYet(f"still running after {seconds} seconds: is there an endless loop?") from None
        raise
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)


def sentence_about(error, files):
    """An exception as one sentence and the line of the learner's file where it arose; None if it is not the learner's."""
    if isinstance(error, SyntaxError) and error.filename in files:
        return f"line {error.lineno} cannot be read: {error.msg}\n  {(error.text or '').strip()}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    if not frames:
        return None
    text = " ".join(str(error).split())[:300]
    return f"line {frames[-1].lineno} stops with {type(error).__name__}: {text}\n  {frames[-1].line}"


def judge(exercise, load, files, seed=0):
    """(state, message) for the names that `load()` gives; `files` are the learner's, for the line of an error."""
    try:
        with at_most(SECONDS):
            learner = load()
            missing = [name for name in exercise.names if not callable(getattr(learner, name, None))]
            if missing:
                raise NotYet(f"there is no {missing[0]}: keep the stub's names")
            execute(exercise.beside("checks")).check(learner, seed)
    except NotYet as problem:
        return "not yet", str(problem)
    except NotImplementedError as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
        return "not started", f"line {lines[-1] if lines else '?'} still raises NotImplementedError: write that function too"
    except (Exception, SystemExit) as error:
        message = sentence_about(error, files)
        if message is None and not isinstance(error, SystemExit):
            last = traceback.extract_tb(error.__traceback__)[-1]
            message = f"the check itself failed, {type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
            message += "\nYour answer may have an unusual form. Please report it."
        return "not yet", message or "the file ends the program: it should only define what is asked for"
    return "solved", ""


def check_file(exercise, seed=0):
    """Judge the learner's file, and write down if it is solved."""
    path = exercise.start()
    state, message = judge(exercise, lambda: execute(path), {str(path)}, seed)
    if state == "not started" and path.exists() and path.read_bytes() != exercise.stub.read_bytes():
        state = "not yet"  # one of several functions is still to be written
    if state == "solved":
        remember("solved", exercise, fingerprint(exercise, path))
    return state, message


def check(id, *functions):
    """In a notebook: check("ex04_2", cd_gradient)."""
    exercise = exercises().get(id_of(id))
    if exercise is None:
        print(f"there is no exercise {id!r}. All of them: {command('--list')}")
        return
    for function in functions:
        if not callable(function) or not hasattr(function, "__name__"):
            call = f"check({exercise.id!r}, {', '.join(exercise.names)})"
            print(f"an argument of type {type(function).__name__} is no function: {call}")
            return
    got = [function.__name__ for function in functions]
    if not set(exercise.names) <= set(got):
        names = "this name" if len(exercise.names) == 1 else "these names"
        wants = " and ".join(exercise.names)
        print(f"got {' and '.join(got) or 'no function'}; this exercise wants {wants}, by {names}")
        return
    learner = types.SimpleNamespace(**{function.__name__: function for function in functions})
    parts = [
        part for function in functions for part in (function, *getattr(function, "__dict__", {}).values())
    ]  # a class has methods
    files = {part.__code__.co_filename for part in parts if inspect.isfunction(part)}
    state, message = judge(exercise, lambda: learner, files)
    if state == "solved":
        remember("solved", exercise, fingerprint(exercise))
    report(exercise, state, message)


# %% Saying it


def coloured(state):
    """The state, in colour on a terminal only (the word says the same)."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return state
    return f"\033[{dict(zip(STATES, (36, 33, 32), strict=True))[state]}m{state}\033[0m"


def report(exercise, state, message):
    """The verdict: the state, one sentence, and what to do next."""
    print(f"{exercise.id} {exercise.stub.stem[7:]}: {coloured(state)}")
    progress, tips = read_progress(), len(execute(exercise.beside("checks")).HINTS)
    if state == "solved":
        n = sum(state_of(other, progress) == "solved" for other in exercises().values())
        print(f"  Solved: {n} of {len(exercises())}. Ours, to compare: {command('--solution', exercise.id)}")
        print(f"  The next one: {command()}")
        return
    if state == "not yet":
        print("\n".join(f"  {line}" for line in message.splitlines()))
        seen = progress["hints"].get(exercise.id, 0)
        print(f"  Hint {min(seen + 1, tips)} of {tips}: {command('--hint', exercise.id)}")
    else:
        print(f"  Write it in {shown(exercise.mine)}, then: {command(exercise.id)}")


def command(*words):
    """What to type, from where the learner is."""
    return " ".join(["python", shown(HERE / "check.py"), *words])


def shown(path):
    """A path as short as it can be typed."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def show(exercise, with_statement):
    """File, statement and diagnosis of one exercise; whether it is solved."""
    exercise.start()
    if with_statement:
        print(f"{shown(exercise.mine)}\n\n{exercise.statement}\n")
    state, message = check_file(exercise)
    report(exercise, state, message)
    return state == "solved"


def first_unsolved():
    """The next exercise, or None when all are solved."""
    progress = read_progress()
    return next((one for one in exercises().values() if state_of(one, progress) != "solved"), None)


def show_next():
    """The next unsolved exercise."""
    exercise = first_unsolved()
    if exercise is None:
        print(f"All {len(exercises())} are solved. The open experiments are next: {command('--open')}")
        return True
    return show(exercise, with_statement=True)


def show_list(markdown=False):
    """A line an exercise; in Markdown without the learner's own state."""
    progress, rows = read_progress(), []
    for exercise in exercises().values():
        title, level, minutes = exercise.heading
        rows.append((exercise.id, title, level, minutes, state_of(exercise, progress)))
    if markdown:
        print("| | exercise | level | minutes |\n|---|---|---|---|")
        print("\n".join(f"| {' | '.join(row[:4])} |" for row in rows))
        return
    for id, title, level, minutes, state in rows:
        print(f"{id}  {title:<62}  level {level}  {minutes:>2} min  {coloured(state)}")
    print(f"Solved: {sum(row[4] == 'solved' for row in rows)} of {len(rows)}")


def watch(exercise):
    """Check again whenever the file's time changes; on to the next one when it is solved."""
    fresh = True
    while exercise:
        path = exercise.start()
        stamp = path.stat().st_mtime_ns
        solved = show(exercise, with_statement=fresh)
        following = first_unsolved() if solved else exercise
        fresh, exercise = following != exercise, following
        if fresh:
            continue
        print("  Waiting for you to save. Ctrl-C ends this.", flush=True)
        while path.exists() and path.stat().st_mtime_ns == stamp:
            time.sleep(0.2)
    print(f"All {len(exercises())} are solved.")


def show_hint(exercise, number=None):
    """Hint `number`, or the next one; the last one again when all were seen."""
    tips = execute(exercise.beside("checks")).HINTS
    seen = read_progress()["hints"].get(exercise.id, 0)
    number = min(seen + 1, len(tips)) if number is None else number
    if not 1 <= number <= len(tips):
        sys.exit(f"{exercise.id} has hints 1 to {len(tips)}")
    print(f"Hint {number} of {len(tips)} ({exercise.id}): {tips[number - 1]}")
    remember("hints", exercise, max(seen, number))


def show_solution(exercise, give_up):
    """Our solution, once the learner has one, or gives up."""
    if state_of(exercise, read_progress()) != "solved" and not give_up:
        sys.exit(f"after yours passes, or: {command('--solution', exercise.id, '--give-up')}")
    print(exercise.beside("solutions").read_text(encoding="utf-8").split("\n\nMUTANTS")[0])


def reset(exercise):
    """The stub again; what was there is kept, as .bak, .bak2, .bak3 ..."""
    if exercise.mine.exists():
        suffixes = itertools.chain([".bak"], (f".bak{n}" for n in itertools.count(2)))
        kept = next(path for path in map(exercise.mine.with_suffix, suffixes) if not path.exists())
        exercise.mine.replace(kept)
        print(f"yours is kept as {shown(kept)}")
    print(f"{shown(exercise.start())} is the stub again")


def show_open(words):
    """An open experiment: its statement, or the verdict on an answer."""
    folder = HERE / "open"
    known = {path.stem: path for path in sorted(folder.glob("o*.py"), key=lambda path: int(path.stem[1:]))}
    if not words:
        print("\n".join(execute(path).__doc__.splitlines()[0] for path in known.values()))
        print(f"What is asked: {command('--open', next(iter(known)))}")
        return True
    if words[0] not in known:
        sys.exit(f"there is no experiment {words[0]!r}. All of them: {command('--open')}")
    experiment = execute(known[words[0]])
    if len(words) == 1:
        print(experiment.__doc__.strip())
        return True
    try:
        answer = json.loads(Path(words[1]).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        sys.exit(f"there is no file {words[1]}")
    except (OSError, ValueError) as error:
        sys.exit(f"{words[1]} cannot be read as JSON: {error}")
    if not isinstance(answer, dict):
        kinds = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
        sys.exit(f"the answer should be an object {{...}}, not {kinds.get(type(answer), 'a number')}")
    try:
        experiment.check(answer)
    except (NotYet, KeyError, TypeError) as problem:
        missing = f"the entry {problem} is missing" if isinstance(problem, KeyError) else f"{problem}"
        print(f"{words[0]}: {coloured('not yet')}\n  {missing}")
        return False
    print(f"{words[0]}: {coloured('solved')}: your numbers agree with what was recomputed, and your claim with your numbers")
    return True


# %% The command line


def chosen(words, everything=False):
    """The exercises that a learner names: ex04_2, ex04, or all."""
    wanted = [id_of(word) for word in words]
    found = [one for one in exercises().values() if everything or any(one.id in (w, f"{w}{one.id[4:]}") for w in wanted)]
    if not found:
        sys.exit(f"there is no exercise {' '.join(words)!r}. All of them: {command('--list')}")
    return found


def run(args):
    """Do what the command line asks; whether all that was checked is solved."""
    words = args.which
    if args.list:
        return show_list(args.markdown) or True
    if args.open:
        return show_open(words)
    if args.watch:
        return watch(chosen(words)[0] if words else first_unsolved()) or True
    if args.hint or args.solution or args.reset:
        if args.hint and not [word for word in words if not word.isdigit()]:
            current = first_unsolved()
            words = [current.id if current else next(reversed(exercises())), *words]
        if not words:
            sys.exit(f"which exercise? All of them: {command('--list')}")
        exercise = chosen(words[:1])[0]
        if args.hint:
            number = int(words[1]) if len(words) > 1 and words[1].isdigit() else None
            return show_hint(exercise, number) or True
        return (show_solution(exercise, args.give_up) if args.solution else reset(exercise)) or True
    if not words and not args.all:
        return show_next()
    wanted = chosen(words, args.all)
    if len(wanted) == 1:
        return show(wanted[0], with_statement=state_of(wanted[0], read_progress()) == "not started")
    solved = [show(exercise, with_statement=False) for exercise in wanted]
    return all(solved)


def main(argv=None):
    """Read the command line; Ctrl-C ends quietly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", help=argparse.SUPPRESS)
    for flag in ("all", "list", "markdown", "watch", "hint", "solution", "give-up", "reset", "open"):
        parser.add_argument(f"--{flag}", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    with contextlib.suppress(AttributeError):  # what a learner prints may not fit the terminal's encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    torch.set_num_threads(1)
    try:
        return 0 if run(args) else 1
    except KeyboardInterrupt:
        print("\nstopped")
        return 130
    except BrokenPipeError:  # read by head, say, which has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a folder that cannot be written, say
        print(error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
