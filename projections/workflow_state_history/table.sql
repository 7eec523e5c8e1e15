CREATE TABLE workflow_state_history (
  id UUID PRIMARY KEY,
  workflow_id UUID NOT NULL,
  version VARCHAR(50) NOT NULL,
  step_id VARCHAR(255) NOT NULL,
  status VARCHAR(20) NOT NULL,
  state_data JSONB NOT NULL,
  timestamp TIMESTAMP WITH TIME ZONE NOT NULL,
  restored_from UUID REFERENCES workflow_checkpoints(id) ON DELETE SET NULL,
  restore_count INTEGER DEFAULT 0,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT NOW(),
  source VARCHAR(20) NOT NULL,
  state_version VARCHAR(50) NOT NULL
);
CREATE INDEX workflow_state_history_by_workflow ON workflow_state_history (workflow_id, created_at);
