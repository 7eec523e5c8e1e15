CREATE TABLE workflow_interventions (
  id UUID PRIMARY KEY,
  workflow_id UUID NOT NULL,
  error_id UUID REFERENCES workflow_errors(id) ON DELETE SET NULL,
  step_id VARCHAR(255) NOT NULL,
  trigger TEXT NOT NULL,
  reason TEXT NOT NULL,
  status VARCHAR(20) NOT NULL,
  requested_at TIMESTAMP WITH TIME ZONE NOT NULL,
  deadline_at TIMESTAMP WITH TIME ZONE NOT NULL,
  resolved_at TIMESTAMP WITH TIME ZONE,
  decision TEXT,
  actor TEXT,
  resolution TEXT
);
CREATE INDEX workflow_interventions_open ON workflow_interventions (status, requested_at);
