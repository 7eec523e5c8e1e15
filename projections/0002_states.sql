-- What release 0.2 adds. Everything has a default, so a projector of the release before goes on writing until it is
-- restarted.

-- Since which offset the rows of a partition are made by a projector that knows the columns of a version of the tables:
-- what stands in them for rows of before is their default, and is not compared with the log.
CREATE TABLE beginnings (
  generation TEXT NOT NULL,
  topic TEXT NOT NULL,
  log_partition INTEGER NOT NULL,
  tables_version INTEGER NOT NULL,
  first_offset BIGINT NOT NULL,
  PRIMARY KEY (generation, topic, log_partition, tables_version)
);

ALTER TABLE workflows
  ADD COLUMN known TEXT NOT NULL DEFAULT '';

ALTER TABLE workflow_checkpoints
  ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0,
  ADD COLUMN codec TEXT,
  ADD COLUMN protection VARCHAR(20) NOT NULL DEFAULT 'none',
  ADD COLUMN claim_uri TEXT,
  ADD COLUMN redacted BOOLEAN NOT NULL DEFAULT false;

ALTER TABLE workflow_state_history
  ADD COLUMN epoch INTEGER,
  ADD COLUMN codec TEXT,
  ADD COLUMN protection VARCHAR(20) NOT NULL DEFAULT 'none',
  ADD COLUMN claim_uri TEXT,
  ADD COLUMN restored_at TIMESTAMP WITH TIME ZONE,
  ADD COLUMN reason TEXT,
  ADD COLUMN redacted BOOLEAN NOT NULL DEFAULT false;

ALTER TABLE workflow_errors
  ADD COLUMN reason TEXT,
  ADD COLUMN sealed BYTEA;

-- A deleted checkpoint is looked for in what refers to it; few rows do.
CREATE INDEX workflow_state_history_by_restored_from ON workflow_state_history (restored_from)
  WHERE restored_from IS NOT NULL;
CREATE INDEX workflow_errors_by_checkpoint ON workflow_errors (checkpoint_id) WHERE checkpoint_id IS NOT NULL;
