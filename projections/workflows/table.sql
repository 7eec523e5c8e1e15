CREATE TABLE workflows (
  id UUID PRIMARY KEY,
  workflow_type VARCHAR(255) NOT NULL,
  external_id VARCHAR(255),
  version TEXT,
  status VARCHAR(20) NOT NULL,
  current_step VARCHAR(255),
  steps INTEGER NOT NULL,
  completed JSONB NOT NULL,
  repairs JSONB NOT NULL,
  paused BOOLEAN NOT NULL,
  restores INTEGER NOT NULL,
  reason TEXT,
  started_at TIMESTAMP WITH TIME ZONE,
  ended_at TIMESTAMP WITH TIME ZONE,
  updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
  log_partition INTEGER NOT NULL,
  first_offset BIGINT NOT NULL
);
CREATE INDEX workflows_by_status ON workflows (status, updated_at);
