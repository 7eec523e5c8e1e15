CREATE TABLE workflow_recovery_attempts (
  id UUID PRIMARY KEY,
  workflow_id UUID NOT NULL,
  error_id UUID REFERENCES workflow_errors(id) ON DELETE SET NULL,
  strategy VARCHAR(100) NOT NULL,
  attempt_number INTEGER NOT NULL,
  success BOOLEAN,
  action_taken VARCHAR(255),
  result_details JSONB,
  error_message TEXT,
  duration_ms INTEGER,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT NOW(),
  status VARCHAR(20) NOT NULL,
  step_id VARCHAR(255) NOT NULL,
  error_type VARCHAR(100) NOT NULL,
  rung INTEGER NOT NULL,
  command_id UUID,
  command_type VARCHAR(100),
  policy_version VARCHAR(64) NOT NULL,
  rule TEXT NOT NULL,
  evidence JSONB,
  alternatives JSONB,
  execute_after_ms BIGINT NOT NULL,
  sent_at TIMESTAMP WITH TIME ZONE,
  accepted_at TIMESTAMP WITH TIME ZONE,
  finished_at TIMESTAMP WITH TIME ZONE
);
CREATE INDEX workflow_recovery_attempts_by_error ON workflow_recovery_attempts (error_id, attempt_number);
CREATE INDEX workflow_recovery_attempts_by_workflow ON workflow_recovery_attempts (workflow_id, created_at);
