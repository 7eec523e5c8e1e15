"""Writes the Grafana dashboard: `python -m ops.deploy.dashboards`. A test compares it with the metrics that exist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent / "grafana" / "dashboards" / "kintsugi.json"
_DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
_COLUMNS, _WIDTH, _HEIGHT = 3, 8, 7

#: (title, unit, kind of panel, [(expression, legend)])
PANELS: tuple[tuple[str, str, str, tuple[tuple[str, str], ...]], ...] = (
    ("Repairs that wait for a human", "short", "stat", (("sum(kintsugi_interventions_open)", "open"),)),
    ("Workflows in memory", "short", "stat", (("sum(kintsugi_workflows_in_memory)", "open"),)),
    (
        "Processes and their versions",
        "short",
        "stat",
        (("count by (job, version) (kintsugi_build_info)", "{{job}} {{version}}"),),
    ),
    (
        "Records processed",
        "ops",
        "timeseries",
        (("sum by (role, outcome) (rate(kintsugi_events_processed_total[1m]))", "{{role}} {{outcome}}"),),
    ),
    (
        "Records waiting",
        "short",
        "timeseries",
        (("sum by (role, topic) (kintsugi_consumer_lag_records)", "{{role}} {{topic}}"),),
    ),
    (
        "Seconds behind",
        "s",
        "timeseries",
        (("max by (role, topic) (kintsugi_consumer_lag_seconds)", "{{role}} {{topic}}"),),
    ),
    (
        "Finished attempts",
        "ops",
        "timeseries",
        (("sum by (strategy, outcome) (rate(kintsugi_recovery_attempts_total[5m]))", "{{strategy}} {{outcome}}"),),
    ),
    (
        "Decision to end of attempt, p99",
        "s",
        "timeseries",
        (
            (
                "histogram_quantile(0.99, sum by (le, strategy) (rate(kintsugi_recovery_duration_seconds_bucket[5m])))",
                "{{strategy}}",
            ),
        ),
    ),
    (
        "Error in the log to its fold",
        "s",
        "timeseries",
        tuple(
            (
                f"histogram_quantile({q}, sum by (le) (rate(kintsugi_error_detection_seconds_bucket[5m])))",
                f"p{int(q * 100)}",
            )
            for q in (0.5, 0.99)
        ),
    ),
    (
        "Checkpoints that did not verify",
        "ops",
        "timeseries",
        (("sum by (reason) (rate(kintsugi_state_validation_failures_total[5m]))", "{{reason}}"),),
    ),
    (
        "Checkpoints proven again",
        "ops",
        "timeseries",
        (("sum by (outcome) (rate(kintsugi_scrub_checkpoints_total[5m]))", "{{outcome}}"),),
    ),
    (
        "Since the last whole scrub",
        "s",
        "timeseries",
        (("time() - max(kintsugi_scrub_last_pass_timestamp_seconds > 0)", "age"),),
    ),
    (
        "Beyond retention, not archived",
        "short",
        "stat",
        (("sum(kintsugi_checkpoints_held)", "checkpoints"),),
    ),
    (
        "Workflows that cannot be restored",
        "short",
        "stat",
        (("sum(kintsugi_workflows_without_checkpoint)", "workflows"),),
    ),
    (
        "Dead letters",
        "ops",
        "timeseries",
        (("sum by (reason) (rate(kintsugi_dlq_records_total[5m]))", "{{reason}}"),),
    ),
    (
        "Rebalances and fenced writes",
        "ops",
        "timeseries",
        (
            ("sum by (role) (rate(kintsugi_rebalances_total[5m]))", "{{role}} rebalances"),
            ("sum by (role) (rate(kintsugi_fenced_writes_total[5m]))", "{{role}} fenced"),
        ),
    ),
    (
        "Since the loop last came round",
        "s",
        "timeseries",
        (("max by (job, instance) (time() - kintsugi_heartbeat_timestamp_seconds)", "{{job}} {{instance}}"),),
    ),
    (
        "Partitions paused to be tried again",
        "ops",
        "timeseries",
        (("sum by (role) (rate(kintsugi_partition_backoffs_total[5m]))", "{{role}}"),),
    ),
    (
        "Partitions owned",
        "short",
        "timeseries",
        (("sum by (role) (kintsugi_partitions_assigned)", "{{role}}"),),
    ),
)


def expressions() -> list[str]:
    """Every PromQL expression of the dashboard."""
    return [expression for _, _, _, targets in PANELS for expression, _ in targets]


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    return {
        "uid": "kintsugi",
        "title": "Kintsugi",
        "tags": ["kintsugi"],
        "schemaVersion": 41,
        "version": 1,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "panels": [_panel(number, *panel) for number, panel in enumerate(PANELS)],
    }


def _panel(number: int, title: str, unit: str, kind: str, targets: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    row, column = divmod(number, _COLUMNS)
    return {
        "id": number + 1,
        "title": title,
        "type": kind,
        "datasource": _DATASOURCE,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": _DATASOURCE, "expr": expression, "legendFormat": legend}
            for i, (expression, legend) in enumerate(targets)
        ],
    }


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
