"""The command `deformable-detr serve MODEL`."""

from __future__ import annotations

from argparse import Namespace

from .options import Parser, add_dtype, add_model

SUMMARY = "serve MODEL over HTTP, with a page to try it"
LIMITS = ("max_batch", "batch_wait_ms", "queue_size", "max_pictures", "max_pixels", "timeout_s")


def add_arguments(parser: Parser) -> None:
    parser.description = "Serve MODEL over HTTP, with a page to try it (needs the extra [serve])."
    add_model(parser)
    parser.option(
        "--host",
        str,
        "127.0.0.1",
        "The address to listen on; 0.0.0.0 also answers other machines.",
        shown="ADDRESS",
    )
    parser.option("--port", int, 8000, "The port to listen on; 0 takes any free one.")
    add_dtype(parser)
    parser.option(
        "--token-file",
        str | None,
        None,
        "A file with the token that requests must carry. Default: the environment variable "
        "DEFORMABLE_DETR_TOKEN; without it, no token is required.",
        shown="FILE",
    )
    parser.option(
        "--allowed-host",
        str,
        None,
        "Host names, in addition to localhost and IP addresses, that requests may use; * allows any.",
        shown="NAME",
        many=True,
        to="allowed_hosts",
    )
    parser.option("--root-path", str, "", "The prefix that a reverse proxy removes.", shown="PATH")
    parser.option("--max-batch", int, 4, "The maximum number of pictures that are computed together.")
    parser.option(
        "--batch-wait-ms", float, 5.0, "The maximum time that a picture waits for others to share its batch."
    )
    parser.option("--queue-size", int, 128, "The maximum number of waiting pictures; more are refused (429).")
    parser.option("--max-pictures", int, 16, "The maximum number of pictures in a request.")
    parser.option("--max-body-mb", int, 32, "The maximum size of a request, in MB.")
    parser.option("--max-pixels", int, 40_000_000, "The maximum number of pixels of a picture.")
    parser.option(
        "--timeout", float, 30.0, "Seconds after which a request is abandoned (504).", to="timeout_s"
    )
    parser.flag("--access-log", "Print a line for each request.")


def run(arguments: Namespace) -> int:
    from ..serve import ServeSettings, serve

    options = vars(arguments)
    limits = {name: options.pop(name) for name in LIMITS}
    body = options.pop("max_body_mb") * 1024**2
    in_flight = max(body, ServeSettings.max_bytes_in_flight)
    hosts = tuple(options.pop("allowed_hosts") or ())
    settings = ServeSettings(
        **limits, allowed_hosts=hosts, max_body_bytes=body, max_bytes_in_flight=in_flight
    )
    serve(**options, settings=settings)
    return 0
