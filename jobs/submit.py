"""Hand a verb to a Ray cluster as a job: python -m jobs.submit nightly --address URL --config shop.toml --as-of 2017-12-01 --wait."""

import os
import pkgutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

import jobs
from cluster import dashboard, working_dir
from cluster import submit as jobs_on
from jobs import job, main
from recsys.config.paths import local_path
from recsys.engine.progress import log
from recsys.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
LOCAL_TOKEN = Path("var/cluster/token")  # of `make cluster-up`
NOT_JOBS = {
    "browse",
    "init",
    "erase",
    "plan",
    "export",
    "printing",  # no verb
    "submit",
    "publish",
    "bundles",
    "runs",
    "work",
    "docs",
}  # browse, erase, plan, init, export, publish, bundles, runs and work read and write a few small files: no work for a cluster
LEFT_RUNNING = 130  # as of a command that Ctrl-C ended


def submit(
    verb: Annotated[str, typer.Argument(help="What to run: nightly, train, score, score_pairs, backtest, …; not publish or bundles.")],
    address: Annotated[str, typer.Option(help="URL of the cluster's dashboard, such as http://127.0.0.1:8265.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="After `--`: more arguments of the verb.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="The settings of either door, a TOML file; a copy travels with the job.", parser=local_path, metavar="PATH"),
    ] = None,
    as_of: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="As of the verb.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the log; exit 0 on SUCCEEDED, 3 on FAILED, 4 on STOPPED.")] = False,
    python: Annotated[
        str | None,
        typer.Option(
            help="Interpreter on the cluster that has the pinned packages; absent, this one for a loopback address, else python."
        ),
    ] = None,
    entrypoint_num_cpus: Annotated[float | None, typer.Option(min=0, help="CPUs of the driver, which may then leave the head.")] = None,
    entrypoint_memory: Annotated[int | None, typer.Option(min=0, help="Bytes of the driver, which may then leave the head.")] = None,
    insecure_http: Annotated[bool, typer.Option("--insecure-http", help="Send the token over plain http to another host.")] = False,
) -> None:
    """Hand a verb to a Ray cluster as a job; without --wait, return when the cluster has it."""
    with job():
        if not (ROOT / "recsys").is_dir():
            raise ConfigError(
                f"{ROOT}: a job takes its code along from the repository, and this is an installed package. Run it in a clone."
            )
        verbs = sorted({module.name for module in pkgutil.iter_modules(jobs.__path__)} - NOT_JOBS)
        if verb not in verbs:
            raise ConfigError(f"'{verb}' is no verb that a cluster runs. There are {', '.join(verbs)}.")
        dashboard.check_address(address, insecure_http=insecure_http)
        remote = not dashboard.loopback(address)
        work = jobs_on.Job(
            verb,
            working_dir.shared_arguments(arguments or [], remote=remote),
            working_dir.settings_text(config, remote=remote) if config else None,
            as_of.date() if as_of else None,
            python or ("python" if remote else sys.executable),
            entrypoint_num_cpus,
            entrypoint_memory,
        )
        secret = dashboard.token(address, os.environ, local=LOCAL_TOKEN, home=Path.home())
        client = dashboard.connect(address, secret, os.environ)
        made = jobs_on.submit(client, work, root=ROOT, today=datetime.now(UTC).date(), address=address)
        log.info("%s %s", made.id, "submitted" if made.fresh else "runs already with the same settings and code; following it")
        if not wait:
            print(made.id)
            log.info("Follow it: the same command with --wait. Stop it: %s", jobs_on.stop_command(made.id, address))
            return
        try:
            status = jobs_on.follow(client, made.id, address=address, write=_show)
        except KeyboardInterrupt:
            if not (sys.stdin.isatty() and _stop_it(made.id)):
                log.info("%s runs on. Stop it: %s", made.id, jobs_on.stop_command(made.id, address))
                raise typer.Exit(LEFT_RUNNING) from None
            status = jobs_on.stop(client, made.id, address=address)
        log.info("%s %s", made.id, status)
        raise typer.Exit(jobs_on.EXIT[status])


def _show(text: str) -> None:
    print(text, end="", flush=True)


def _stop_it(job_id: str) -> bool:
    """What the person says; a second Ctrl-C leaves the job running."""
    try:
        return typer.confirm(f"\nStop {job_id}?", default=False)
    except (typer.Abort, KeyboardInterrupt):
        return False


if __name__ == "__main__":
    main(submit)
