"""The parser of a command, and the options that several commands share.

argparse splits the command line. Values are converted and checked like fields of a configuration
(config/checks.py), and every error becomes a UserError that names the option as the user typed it.
"""

from __future__ import annotations

import argparse
from argparse import SUPPRESS, ArgumentError, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NoReturn

from ..config import DataConfig, Layout
from ..config.checks import fits, from_text, in_words, placeholder, quoted, written
from ..errors import UserError
from .messages import suggestion

Reader = Callable[[str], Any]


class Parser(argparse.ArgumentParser):
    """The parser of one command.

    Args:
        program: the words before the options, such as `deformable-detr train`.
        typed: the command's arguments; the defaults that `--help` shows may depend on them.
        add_help: whether the parser has the options `--help` and `--debug`.

    Attributes:
        texts: the help text of each option and argument, by the name that the user sees.
    """

    def __init__(self, program: str, typed: Sequence[str] = (), *, add_help: bool = True):
        # No abbreviations: scripts that use them break when an option is added.
        super().__init__(prog=program, add_help=False, allow_abbrev=False, exit_on_error=False)
        self.typed = list(typed)
        self.texts: dict[str, str] = {}
        self._switches: dict[str, str] = {}
        self._shapes: list[str] = []  # required arguments, for the usage line
        self._titled: dict[str, Any] = {}
        if add_help:
            self.add_argument("-h", "--help", action="help", help="Show this text.")
            # main.py removes it before parsing
            self.flag("--debug", "Show the traceback of an error.", to="debug")

    def argument(
        self, name: str, shown: str, help: str, *, many: bool = False, optional: bool = False
    ) -> None:
        """Add a positional argument.

        Args:
            name: the name of the attribute of the parsed arguments.
            shown: the argument's name in `--help` and in messages.
            help: a sentence for `--help`.
            many: whether one or more values are accepted, as a list.
            optional: whether the argument may be omitted, in which case it is None.
        """
        nargs = "+" if many else "?" if optional else None
        shape = f"{shown} [{shown} …]" if many else f"[{shown}]" if optional else shown
        self._shapes.append(shape)
        self.texts[shown] = help
        self.add_argument(name, metavar=shown, nargs=nargs, help=_escaped(help), type=_filled)

    def option(
        self,
        name: str,
        kind: Any,
        default: Any,
        help: str,
        *,
        shown: str | None = None,
        read: Reader | None = None,
        many: bool = False,
        required: bool = False,
        to: str | None = None,
        group: str | None = None,
        default_shown: str | None = None,
    ) -> None:
        """Add an option with a value.

        Args:
            name: the option with its hyphens, such as `--output`.
            kind: the type of the value, as an annotation: `int`, `float | None`, `Literal["a", "b"]`.
            default: the value if the option is not typed; SUPPRESS leaves the attribute out.
            help: a sentence, to which the default is added.
            shown: the name of the value in `--help`; by default it follows from `kind`.
            read: a function that converts the typed text to the value, instead of `kind`.
            many: whether one or more values are accepted, as a list.
            required: whether the option must be typed.
            to: the name of the attribute of the parsed arguments; by default the option's name, without the
                hyphens at its start and with underscores for the others.
            group: the title under which `--help` lists the option.
            default_shown: the default that `--help` shows, if it differs from `default`.
        """
        if required:
            self._shapes.append(f"{name} {shown or placeholder(kind)}")
        if default_shown is None and default not in (None, "", SUPPRESS):
            default_shown = " ".join(map(str, default)) if many else written(default)
        if default_shown:
            help = f"{help} Default: {default_shown}."
        self.texts[name] = help
        options: dict[str, Any] = {"dest": to} if to is not None else {}
        self._group(group).add_argument(
            name,
            type=read or _reader(kind),
            default=default,
            required=required,
            nargs="+" if many else None,
            metavar=shown or placeholder(kind),
            help=_escaped(help),
            **options,
        )

    def flag(self, name: str, help: str, *, to: str | None = None, group: str | None = None) -> None:
        """Add an option without a value.

        If the option is not typed, its attribute is False or, if `to` gives the attribute's name, absent.
        `group` is the title under which `--help` lists the option.
        """
        options: dict[str, Any] = {"dest": to, "default": SUPPRESS} if to is not None else {}
        self.texts[name] = help
        self._group(group).add_argument(name, action="store_true", help=_escaped(help), **options)

    def switch(self, name: str, word: str, help: str, *, group: str | None = None) -> None:
        """Add an option that is typed alone or followed by `word`; its attribute is False, True or `word`.

        Any other text after it is the next argument, as after a flag.
        """
        self.texts[name] = help
        self._switches[name] = word
        self._group(group).add_argument(
            name,
            type=partial(_switched, word),
            nargs="?",
            const=True,
            default=False,
            metavar=word,
            help=_escaped(help),
        )

    def read(self, arguments: Sequence[str]) -> Namespace:
        """Parse the typed arguments.

        Raises:
            UserError: if an option is unknown or lacks its value, a value is invalid, or an argument is
                missing.
            SystemExit: after `--help`.
        """
        chosen, unknown = self.read_known(arguments)
        if unknown:
            near = suggestion(unknown[0].partition("=")[0], self.texts) if unknown[0].startswith("--") else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
        return chosen

    def read_known(self, arguments: Sequence[str]) -> tuple[Namespace, list[str]]:
        """Return the parsed arguments of this parser, and the words that it does not know.

        Raises:
            UserError: if an option lacks its value, a value is invalid, or an argument is missing.
            SystemExit: after `--help`.
        """
        if self.usage is None:
            self.usage = " ".join([self.prog, *self._shapes, "[options]"])
        try:
            return self.parse_known_args(self._with_joined_switches(arguments))
        except ArgumentError as error:
            if error.argument_name is None:
                self.error(error.message)
            joint = " " if error.message.startswith("must ") else ": "
            self.error(f"{error.argument_name}{joint}{error.message}")

    def _with_joined_switches(self, arguments: Sequence[str]) -> list[str]:
        """Return the arguments with each switch joined to its word, as in `--resume=auto`.

        A switch without its word is joined to an empty string, so that argparse does not give it the next
        argument.
        """
        joined: list[str] = []
        for argument in arguments:
            if joined and argument == self._switches.get(joined[-1].removesuffix("=")):
                joined[-1] += argument
            else:
                joined.append(f"{argument}=" if argument in self._switches else argument)
        return joined

    def error(self, message: str) -> NoReturn:
        """Raise a UserError; argparse would print the usage and exit."""
        raise UserError(f"{message} (`{self.prog} --help` lists the options).")

    def _group(self, title: str | None) -> Any:
        if title is None:
            return self
        if title not in self._titled:
            self._titled[title] = self.add_argument_group(title)
        return self._titled[title]


def _escaped(help: str) -> str:
    """Prepare a help text for argparse: escape %, which argparse interprets, and remove backticks."""
    return help.replace("%", "%%").replace("`", "")


def _reader(kind: Any) -> Reader:
    def read(text: str) -> Any:
        value = from_text(text, kind)
        if not fits(value, kind):
            raise ArgumentTypeError(f"must be {in_words(kind)}, not {quoted(text)}")
        return value

    return read


def _filled(text: str) -> str:
    """Return `text`, or raise an `ArgumentTypeError` if it is empty.

    An unset shell variable gives an empty string, which as a path would mean the current folder.
    """
    if not text:
        raise ArgumentTypeError("must not be empty")
    return text


def _switched(word: str, text: str) -> bool | str:
    if text not in ("", word):
        raise ArgumentTypeError(f"must have no value or {word}, not {quoted(text)}")
    return text or True


def listed(text: str) -> list[str]:
    """Return the names in a comma-separated list, without spaces around them and without empty names."""
    return [name.strip() for name in text.split(",") if name.strip()]


# ---------------------------------------------------------------------- shared by several commands


def add_model(parser: Parser) -> None:
    """Add the argument MODEL and the option --device."""
    parser.argument(
        "model",
        "MODEL",
        "A run or checkpoint folder, an authors' .pth file, a transformers folder or hub id, or `demo`; to "
        "evaluate, predict and serve also an exported .onnx or .xml file.",
    )
    add_device(parser)


def add_device(parser: Parser, group: str | None = None) -> None:
    parser.option(
        "--device",
        str,
        "auto",
        "Where to compute: auto (a GPU if there is one), cpu, cuda, cuda:1, …",
        shown="DEVICE",
        group=group,
    )


def add_data(parser: Parser) -> None:
    parser.argument("data", "DATA", "A data set: a folder in COCO, Pascal VOC or YOLO layout.")


def add_split(parser: Parser, help: str = "The part of DATA to use.") -> None:
    help = f"{help} Default: the one on which training measures, val or else test."
    parser.option("--split", str | None, None, help, shown="NAME")


def add_format(parser: Parser) -> None:
    parser.option("--format", Layout, "auto", "The layout of DATA; auto recognises it by its files.")


def add_output(parser: Parser, default: str | None, help: str, shown: str = "FILE") -> None:
    parser.option("--output", str | None, default, help, shown=shown)


def add_max_pixels(parser: Parser) -> None:
    parser.option(
        "--data.max_pixels",
        int | None,
        None,
        "The maximum number of pixels of a picture. Default: the limit with which MODEL was trained.",
        to="max_pixels",
    )


def add_remote_images(parser: Parser) -> None:
    parser.option(
        "--data.images",
        str | None,
        None,
        "A URL such as s3://bucket/coco/{split} with the pictures, if DATA has only COCO annotations.",
        shown="URL",
        to="images",
    )
    parser.option(
        "--data.cache_gb",
        float,
        DataConfig.cache_gb,
        "The maximum size of such pictures on the disk, in GB.",
        to="cache_gb",
    )
    parser.option(
        "--data.cache_folder",
        str,
        DataConfig.cache_folder,
        "The folder for such pictures.",
        shown="FOLDER",
        to="cache_folder",
    )


def add_threshold(parser: Parser) -> None:
    parser.option(
        "--threshold",
        float | None,
        None,
        "The minimum score of a detection. Default: the thresholds of MODEL, one for each class, or 0.5 if "
        "it has none.",
    )


def add_dtype(parser: Parser) -> None:
    parser.option(
        "--dtype", Literal["fp32", "bf16", "fp16"], "fp32", "The number format in which the model computes."
    )


def add_tta(parser: Parser) -> None:
    parser.flag("--tta", "Test-time augmentation: merge the detections of flipped copies at three scales.")
    parser.option(
        "--tta-scales",
        tuple[float, ...],
        None,
        "Test-time augmentation at these scales, as in [0.8,1,1.2].",
        shown="[X,…]",
    )


def without_tta(arguments: Namespace) -> dict[str, Any]:
    """Return all arguments as keywords, with one keyword `tta` for the options --tta and --tta-scales.

    The value of `tta` is the list of scales if --tta-scales was typed, and otherwise whether --tta was typed.
    The attributes `tta` and `tta_scales` are removed from `arguments`.
    """
    options = vars(arguments)
    scales, chosen = options.pop("tta_scales"), options.pop("tta")
    return {**options, "tta": list(scales) if scales else chosen}
