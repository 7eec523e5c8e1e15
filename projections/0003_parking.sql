-- Workflows with an event that could not be applied, and their events from that one on, as they came: they wait in
-- order until somebody retries or discards. Each generation of the tables parks for itself.
CREATE TABLE parked_workflows (
  generation TEXT NOT NULL,
  topic TEXT NOT NULL,
  log_partition INTEGER NOT NULL,
  workflow_id UUID NOT NULL,
  first_offset BIGINT NOT NULL,
  reason TEXT NOT NULL,
  detail TEXT NOT NULL,
  retries INTEGER NOT NULL DEFAULT 0,
  parked_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT now(),
  PRIMARY KEY (generation, topic, log_partition, workflow_id)
);

CREATE TABLE parked_events (
  generation TEXT NOT NULL,
  topic TEXT NOT NULL,
  log_partition INTEGER NOT NULL,
  log_offset BIGINT NOT NULL,
  workflow_id UUID NOT NULL,
  record_type TEXT NOT NULL,
  record_key BYTEA,
  record_value BYTEA NOT NULL,
  headers JSONB,
  created_at TIMESTAMP WITH TIME ZONE NOT NULL,
  PRIMARY KEY (generation, topic, log_partition, log_offset)
);
CREATE INDEX parked_events_by_workflow ON parked_events (workflow_id, log_offset);
