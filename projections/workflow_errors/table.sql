CREATE TABLE workflow_errors (
  id UUID PRIMARY KEY,
  workflow_id UUID NOT NULL,
  step_id VARCHAR(255) NOT NULL,
  error_type VARCHAR(100) NOT NULL,
  error_severity VARCHAR(20) NOT NULL,
  error_message TEXT NOT NULL,
  stack_trace TEXT,
  context JSONB,
  checkpoint_id UUID REFERENCES workflow_checkpoints(id) ON DELETE SET NULL,
  recovery_strategy VARCHAR(100),
  recovery_successful BOOLEAN,
  recovery_attempts INTEGER DEFAULT 0,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT NOW(),
  status VARCHAR(20) NOT NULL,
  error_code VARCHAR(100) NOT NULL,
  detected_by VARCHAR(100) NOT NULL,
  fingerprint VARCHAR(64),
  root_error_id UUID,
  workflow_type VARCHAR(255) NOT NULL,
  updated_at TIMESTAMP WITH TIME ZONE NOT NULL
);
CREATE INDEX workflow_errors_by_workflow ON workflow_errors (workflow_id, created_at);
CREATE INDEX workflow_errors_open ON workflow_errors (status, created_at);
