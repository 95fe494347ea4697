"""``banditctl serve``: run a server until it is told to stop."""

import gc
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from server import logs
from server import settings as settings_module
from server.app import Server
from server.settings import Settings
from server.workers import run_workers


def serve(  # noqa: PLR0913  one per setting
    database: Annotated[
        str | None, typer.Option(help="SQLAlchemy URL (sqlite:///bandit.db).")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one (50051).")] = None,
    secret_file: Annotated[
        Path | None, typer.Option(help="Key of draws and pseudonyms; else made beside SQLite.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Requests handled at a time (32).")] = None,
    grace: Annotated[float | None, typer.Option(help="Seconds to drain at a stop (10).")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes, on PostgreSQL (1).")] = None,
    auth: Annotated[
        str | None,
        typer.Option(help="Who may call: tokens, or none for everybody (none on loopback)."),
    ] = None,
    gate: Annotated[
        str | None,
        typer.Option(help="Whether a start needs a passing verdict: required or off (required)."),
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="The server's certificate chain, PEM; speaks TLS.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The key of the certificate, PEM.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="Authorities whose certificates callers must have, PEM.")
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(help="Port of metrics and health over HTTP; 0 takes a free one (none)."),
    ] = None,
    metrics_host: Annotated[
        str | None, typer.Option(help="Address of metrics and health (127.0.0.1).")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error (info).")
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(help="json, text, or auto: text on a terminal (auto).")
    ] = None,
    trace_endpoint: Annotated[
        str | None, typer.Option(help="OTLP address that takes traces (none); needs an extra.")
    ] = None,
    insecure: Annotated[  # noqa: FBT002
        bool,
        typer.Option("--insecure", help="Allow plain text and no tokens on other than loopback."),
    ] = False,
) -> None:
    """Run a server until SIGTERM or SIGINT, then drain.

    Every option can also be given in the environment, such as BANDIT_DATABASE.
    """
    settings = settings_module.read(
        database=database,
        host=host,
        port=port,
        secret_file=secret_file,
        threads=threads,
        grace=grace,
        workers=workers,
        auth=auth,
        gate=gate,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        metrics_port=metrics_port,
        metrics_host=metrics_host,
        log_level=log_level,
        log_format=log_format,
        trace_endpoint=trace_endpoint,
        insecure=insecure or None,
    )
    _run(settings)


def _run(settings: Settings) -> None:
    """Serve in this process, or in several, until told to end."""
    logs.configure(settings.log_level, settings.log_format)
    if settings.workers > 1:
        count, address = settings.workers, settings.host
        raise typer.Exit(
            run_workers(
                settings,
                lambda port: typer.echo(f"serving on {address}:{port} with {count} workers"),
            )
        )
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    if settings.supervised:
        threading.Thread(target=_end_with_parent, args=(asked,), daemon=True).start()
    server = Server(settings)
    server.start()
    gc.collect()
    gc.freeze()  # what is alive now lives as long as the process: never look at it again
    gc.set_threshold(20_000, 50, 100)
    typer.echo(f"serving on {settings.host}:{server.port}")
    sys.stdout.flush()
    asked.wait()
    server.stop()


def _end_with_parent(asked: threading.Event) -> None:
    """Ask for a stop when standard input closes."""
    sys.stdin.read()
    asked.set()
