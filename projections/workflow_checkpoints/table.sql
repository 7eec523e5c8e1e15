-- The story's columns, and ours behind them. Ids come from events: no default makes one up.
CREATE TABLE workflow_checkpoints (
  id UUID PRIMARY KEY,
  workflow_id UUID NOT NULL,
  step_id VARCHAR(255) NOT NULL,
  checkpoint_type VARCHAR(50) NOT NULL,
  timestamp TIMESTAMP WITH TIME ZONE NOT NULL,
  state_data JSONB NOT NULL,
  state_version VARCHAR(50) NOT NULL,
  checksum VARCHAR(64) NOT NULL,
  size_bytes INTEGER NOT NULL,
  compressed BOOLEAN DEFAULT false,
  metadata JSONB,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT NOW(),
  sequence BIGINT NOT NULL,
  verified BOOLEAN NOT NULL,
  rejection TEXT,
  evidence BOOLEAN NOT NULL,
  chain_digest VARCHAR(64) NOT NULL,
  log_partition INTEGER NOT NULL,
  log_offset BIGINT NOT NULL
);
CREATE INDEX workflow_checkpoints_by_workflow ON workflow_checkpoints (workflow_id, sequence);
