"""All projected tables, in an order in which references point backwards only."""

from __future__ import annotations

from .incidents.fold import TABLE as _incidents
from .kit import Table
from .notifications.fold import TABLE as _notifications
from .resource_leases.fold import TABLE as _leases
from .workflow_checkpoint_rejections.fold import TABLE as _rejections
from .workflow_checkpoints.fold import TABLE as _checkpoints
from .workflow_debug_sessions.fold import TABLE as _debug_sessions
from .workflow_errors.fold import TABLE as _errors
from .workflow_interventions.fold import TABLE as _interventions
from .workflow_recovery_attempts.fold import TABLE as _attempts
from .workflow_state_history.fold import TABLE as _history
from .workflows.fold import TABLE as _workflows

TABLES: tuple[Table, ...] = (
    _workflows,
    _checkpoints,
    _history,
    _rejections,
    _errors,
    _attempts,
    _interventions,
    _debug_sessions,
    _leases,
    _incidents,
    _notifications,
)
