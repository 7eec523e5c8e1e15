CREATE TABLE workflow_checkpoint_rejections (
  id UUID PRIMARY KEY,
  checkpoint_id UUID NOT NULL,
  workflow_id UUID NOT NULL,
  step_id VARCHAR(255) NOT NULL,
  reason TEXT NOT NULL,
  detail TEXT NOT NULL,
  detected_by TEXT NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE NOT NULL,
  log_partition INTEGER NOT NULL,
  log_offset BIGINT NOT NULL
);
CREATE INDEX workflow_checkpoint_rejections_by_checkpoint ON workflow_checkpoint_rejections (checkpoint_id);
CREATE INDEX workflow_checkpoint_rejections_by_workflow ON workflow_checkpoint_rejections (workflow_id, created_at);
