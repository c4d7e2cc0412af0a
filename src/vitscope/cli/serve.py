"""Command `vitscope serve`: a local page that explains images."""

from contextlib import suppress
from typing import Annotated

from cyclopts import Parameter
from rich.text import Text

import vitscope
from vitscope.cli.each_model import check_all_weights, check_ids
from vitscope.cli.output import Output
from vitscope.cli.settings import Result
from vitscope.cli.use_results import find_folders
from vitscope.config import RunConfig
from vitscope.errors import UsageError
from vitscope.extras import require_package


def serve(
    *results: Annotated[Result, Parameter(required=False)],
    model: list[str] | None = None,
    device: str = "auto",
    host: str = "127.0.0.1",
    port: int = 8000,
) -> None:
    """Serve a local page that explains the images dropped on it.

    Results are shown as their report; audits among them are what verdicts refer to. Needs the extra
    `serve`; Ctrl-C stops it.

    Example:  vitscope serve results --model dinov2-small

    Args:
        results: Results, or folders containing results.
        model: Model id, once per model: a built-in name, a Hugging Face id or local folder,
            timm:NAME[@CHECKPOINT], torchhub:NAME, open_clip:NAME/TAG.
        device: Where to run: auto (a GPU if there is one), cpu, cuda:1, mps.
        host: Address to serve on; by default this machine alone reaches it.
        port: Port to serve on; 0 for any that is free.
    """
    ids = model or []
    if not results and not ids:
        raise UsageError("neither a result nor a model was given: name results, or give --model")
    for package in ("anyio", "starlette", "uvicorn"):
        require_package(package, "serve", needed_by="vitscope serve")
    check_ids(ids)
    folders = find_folders(results)
    terminal = Output()
    check_all_weights(ids, terminal)
    RunConfig(device=device).resolve_device()
    from vitscope.figures.saved import load_results  # here, because importing it is slow
    from vitscope.results.audit_result import AuditResult
    from vitscope.serving.app import listen, make_server
    from vitscope.serving.explainer import Explainer

    found = load_results(folders)
    audits = [AuditResult.load(one.folder) for one in found if one.kind == "audit"]
    with listen(host, port) as socket:
        models = {}
        for model_id in ids:
            terminal.bars.print(Text(f"loading {model_id}"))
            models[model_id] = vitscope.load_model(model_id)
        server = make_server(Explainer(models, audits, device), found, host)
        address = f"[{host}]" if ":" in host else host
        port = socket.getsockname()[1]
        terminal.console.tell(f"open http://{address}:{port}/ (Ctrl-C stops)")
        with suppress(KeyboardInterrupt):
            server.run(sockets=[socket])
