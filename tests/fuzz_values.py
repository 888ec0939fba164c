"""Odd values: texts, numbers, JSON and Python that nobody should give."""

import math
import random

TEXTS = [
    *("", " ", "nan", "inf", "-inf", "1e400", "-0.0", "0", "-1", "1", "2.5", "1e3"),
    *("0x10", "1_000", "1,000", "None", "True", "false", "[]", "{}", "()", "(2,)"),
    *(
        "é",
        "日本",
        "\x07",
        "\x1b[31m",
        "a\nb",
        "\t",
        "a b",
        "-",
        "--",
        "--epochs",
        "-h",
    ),
    *("1,2", "'", '"', "%s", "{0}", "$HOME", "$\\frac$", "[/b]", "[bold]", ":smile:"),
    *("..", ".", "~", "/dev/null", "/dev/null/x", "/dev/full", "/proc/self/x", "_x"),
    *("x" * 5000, "9" * 5000, "\udcff", "١", "½", "²", "1 2", "2 3", "relu", "tanh"),
    *(
        "gauss_newton",
        "os:system",
        "hfdist.runs.config:Config",
        "\u202e",
        "a/b/c",
        "//",
    ),
]
INTEGERS = [0, 1, 2, 3, 7, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, 10**30]
REALS = [0.0, 1e-45, 1e-38, 0.5, 1.0, 1e38, 1e39, 1e308, math.nan, math.inf, 1e-320]
# Python expressions.
EXPRESSIONS = [
    *(
        "None",
        "True",
        "'4'",
        "''",
        "float('nan')",
        "float('inf')",
        "10**400",
        "-1",
        "0",
    ),
    *("1e-320", "1e39", "2.5", "3.0", "b'x'", "1j", "...", "object()", "object", "int"),
    *(
        "[1]",
        "[]",
        "()",
        "(2, 3)",
        "(0,)",
        "('2',)",
        "((2,),)",
        "{}",
        "{'a': 1}",
        "{1}",
    ),
    *("np.float32(2)", "np.array([1, 2])", "np.array(2)", "np.int64(2)", "np.nan"),
    *("jnp.ones(())", "jnp.ones(3)", "np.array([])", "np.zeros((1, 1), object)"),
    *("lambda step: 1.0", "print", "CG", "CG()", "CG(max_steps=-1)", "Newton", "SGD()"),
    *("Path('x')", "range(2)", "(x for x in [1])", "iter([2])", "Mine", "__import__"),
    *("1 / 0", "undefined", "[][0]", "open('/nowhere')", "field(default=1)", "type"),
    *("'levenberg_marquardt'", "(1e-3, 1e3)", "(1e3, 1e-3)", "(0, 1)", "[1.0, 2.0]"),
    *("'\\ud800'", "'\\0'", "'x' * 10**6", "[[]] * 10**4", "Config", "super", "Method"),
]
# What may stand at the end of a config file.
RAISING = [
    *("raise ValueError('a\\nb')", "raise SystemExit", "raise SystemExit('text')"),
    *("exit(3)", "import nowhere_at_all", "assert False", "raise StopIteration"),
    *("raise UnicodeDecodeError('utf-8', b'', 0, 1, 'x')", "raise RecursionError"),
    *(
        "def f(): f()\nf()",
        "raise MemoryError",
        "raise OSError",
        "raise KeyError('\\x07')",
    ),
    "class E(Exception):\n    def __str__(self): raise ValueError\nraise E",
    "class E(Exception):\n    def __str__(self): return 'x' * 10**6\nraise E",
    *("config = None", "config = Config", "config = [config]", "del config", "x = ("),
    *("config = type('C', (), {})()", "(" * 300, "  x = 1", "return", "yield", "\x0c"),
    *("import sys; sys.argv = []", "import sys; sys.path = []", "\\", "# é", "'''"),
    *("__doc__ = 3", "__name__ = None", "config = Config(method=Mine(extra=2))"),
    *("import hfdist.nowhere", "from hfdist import *; Config = 3", "raise 3", "0777"),
    "class C(Config):\n    extra: int = 1\nconfig = C(method=SGD())",
    "@dataclass(frozen=True, kw_only=True)\nclass C(Config):\n    extra: dict = None\n"
    "config = C(method=SGD())",
]


def number_near(rng: random.Random, value: float | None) -> str:
    """A number of its kind at the edge of something, as text."""
    number = rng.choice(REALS if isinstance(value, float) else INTEGERS)
    return str(rng.choice([*[number] * 5, -number]))


def odd_json(rng: random.Random):
    """Any JSON value."""
    return rng.choice(
        [
            *(None, True, False, 0, -1, 1, 3, 2.5, 1e308, math.nan, -math.inf),
            *(10**400, 2**31, 2**63, "", "x", "nan", "3", "\ud800", "\0", "a\nb"),
            *([], [[]], [1], [None], ["x"] * 1000, {}, {"class": 3}, {"a": {"b": []}}),
            *({"class": "os:system"}, {"class": "hfdist.methods.sgd:SGD"}),
            *({"class": "hfdist.nowhere:X"}, _nested(100), _nested(900)),
        ]
    )


def _nested(depth: int):
    inner = []
    for _ in range(depth):
        inner = [inner]
    return inner


def mutated(rng: random.Random, tree):
    """The tree with something in it changed: a value, a name, or that it is there."""
    if not isinstance(tree, dict | list) or not tree or rng.random() < 0.1:
        return odd_json(rng)
    tree = dict(tree) if isinstance(tree, dict) else list(tree)
    key = rng.choice(sorted(tree) if isinstance(tree, dict) else range(len(tree)))
    change = rng.choice(["inside", "inside", "inside", "drop", "rename", "class"])
    if change == "inside":
        tree[key] = mutated(rng, tree[key])
    elif change == "class" and isinstance(tree, dict) and "class" in tree:
        tree["class"] = rng.choice(
            [
                "",
                ":",
                "os:system",
                "hfdist.runs.config:Config",
                "hfdist.models.mlp:MLP",
                3,
            ]
        )
    else:
        value = tree.pop(key)
        if change == "rename" and isinstance(tree, dict):
            tree[rng.choice(["", "x", "self", "class", "é", f"{key}_"])] = value
    return tree
