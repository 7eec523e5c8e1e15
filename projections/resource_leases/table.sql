CREATE TABLE resource_leases (
  id UUID PRIMARY KEY,
  workflow_id UUID NOT NULL,
  workflow_type VARCHAR(255) NOT NULL,
  lease_id VARCHAR(255) NOT NULL,
  resource_id VARCHAR(255) NOT NULL,
  step_id VARCHAR(255) NOT NULL,
  amount INTEGER NOT NULL,
  priority INTEGER NOT NULL,
  status VARCHAR(20) NOT NULL,
  requested_at TIMESTAMP WITH TIME ZONE NOT NULL,
  granted_at TIMESTAMP WITH TIME ZONE,
  released_at TIMESTAMP WITH TIME ZONE,
  reason TEXT
);
CREATE INDEX resource_leases_open ON resource_leases (resource_id, requested_at) WHERE status <> 'released';
CREATE INDEX resource_leases_workflow ON resource_leases (workflow_id);
