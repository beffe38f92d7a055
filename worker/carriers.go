package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/workflows"
)

// workflowTaskTimeout is how soon a workflow goes on elsewhere when its worker has died.
const workflowTaskTimeout = 5 * time.Second

// errStarted: the workflow had been started before.
var errStarted = errors.New("workflow was already started")

// startDelivery starts the one workflow that carries c in its epoch: eagerly, so that its first task comes back with
// the answer and runs in this process. errStarted says that there is, or was, one already.
func startDelivery(ctx context.Context, temporalClient client.Client, c postgres.Claimed, local bool) error {
	in := workflows.DeliverInput{
		DeliveryID:    id.Delivery.Format(c.DeliveryID),
		EventID:       id.Event.Format(c.EventID),
		EndpointID:    id.Endpoint.Format(c.EndpointID),
		DestinationID: id.Destination.Format(c.DestinationID),
		TenantID:      id.Tenant.Format(c.TenantID),
		Epoch:         c.Epoch,
		Attempt:       c.Attempt,
		Local:         local,
	}
	_, err := temporalClient.ExecuteWorkflow(ctx, client.StartWorkflowOptions{
		ID:                                       workflows.DeliveryWorkflowID(in.DeliveryID, in.Epoch),
		TaskQueue:                                workflows.DeliveryTaskQueue,
		WorkflowIDReusePolicy:                    enums.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE,
		WorkflowExecutionErrorWhenAlreadyStarted: true,
		WorkflowTaskTimeout:                      workflowTaskTimeout,
		EnableEagerStart:                         true,
		StaticSummary:                            fmt.Sprintf("event %s to %s", in.EventID, in.DestinationID),
		TypedSearchAttributes: temporal.NewSearchAttributes(
			workflows.TenantAttribute.ValueSet(in.TenantID),
			workflows.EndpointAttribute.ValueSet(in.EndpointID),
			workflows.DestinationAttribute.ValueSet(in.DestinationID),
			workflows.EventAttribute.ValueSet(in.EventID),
		),
	}, workflows.DeliverWebhookName, in)
	var started *serviceerror.WorkflowExecutionAlreadyStarted
	if errors.As(err, &started) {
		return errStarted
	}
	return err
}

// carrierRuns asks Temporal whether the workflow that carries c in its epoch is running. One that is closed or unknown
// (terminated by hand, past retention, lost with a restore) will never record anything again.
func carrierRuns(ctx context.Context, temporalClient client.Client, c postgres.Claimed) (bool, error) {
	workflowID := workflows.DeliveryWorkflowID(id.Delivery.Format(c.DeliveryID), c.Epoch)
	described, err := temporalClient.DescribeWorkflowExecution(ctx, workflowID, "")
	var unknown *serviceerror.NotFound
	if errors.As(err, &unknown) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("describe workflow %s: %w", workflowID, err)
	}
	return described.GetWorkflowExecutionInfo().GetStatus() == enums.WORKFLOW_EXECUTION_STATUS_RUNNING, nil
}
