"""The dlt pipelines that fill a warehouse.

Imports dlt, so `Workspace.configure_dlt` comes before it.
"""

from __future__ import annotations

import shutil
from typing import Any

import dlt

from msgbubbles.source.state import States
from msgbubbles_sync.files import remove
from msgbubbles_sync.workspace import PIPELINE, Workspace

from . import build_destination


def build_fresh_pipeline(workspace: Workspace, name: str) -> dlt.Pipeline:
    """Build a pipeline without the files of its last run, for rows that stay in a file of ours until they are loaded.

    A run that was killed leaves dlt's files in any state. Here nothing in them is needed: dlt restores the schema from
    the destination. The caller holds the warehouse's lock.
    """
    remove(workspace.folder / "dlt" / name)
    pipeline = build_pipeline(workspace, name)
    pipeline.sync_destination()
    return pipeline


def build_pipeline(workspace: Workspace, name: str = PIPELINE) -> dlt.Pipeline:
    """Build a pipeline that fills the warehouse. The caller holds the warehouse's lock."""
    dlt_files = workspace.folder / "dlt" / name
    # dlt moves a normalized package to its place and then removes what it was made of. Killed between the two, it would
    # fail to move it there a second time, for ever.
    for extracted in (dlt_files / "normalize" / "extracted").glob("*"):
        if (dlt_files / "load" / "normalized" / extracted.name).exists():
            shutil.rmtree(extracted)
    destination = build_destination(workspace)
    return dlt.pipeline(
        name,
        destination=destination.build_dlt_destination(),
        dataset_name=destination.dataset,
        pipelines_dir=str(workspace.folder / "dlt"),
    )


def resource_states(pipeline: dlt.Pipeline) -> States:
    """Return the states of the resources."""
    source: dict[str, Any] = pipeline.state.get("sources", {}).get("msgbubbles", {})
    return States.from_resources(source.get("resources", {}))
