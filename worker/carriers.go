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

// carrierID names the workflow that carries a claimed delivery.
func carrierID(c postgres.Claimed) string {
	if c.Lane == postgres.LaneBatch {
		return workflows.BatchWorkflowID(id.Claim.Format(c.ClaimID))
	}
	return workflows.DeliveryWorkflowID(id.Delivery.Format(c.DeliveryID), c.Epoch)
}

// startDelivery starts the one workflow that carries c in its epoch. errStarted says that there is, or was, one already.
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
	options := startOptions(carrierID(c), fmt.Sprintf("event %s to %s", in.EventID, in.DestinationID))
	options.TypedSearchAttributes = temporal.NewSearchAttributes(
		workflows.TenantAttribute.ValueSet(in.TenantID),
		workflows.EndpointAttribute.ValueSet(in.EndpointID),
		workflows.DestinationAttribute.ValueSet(in.DestinationID),
		workflows.EventAttribute.ValueSet(in.EventID),
	)
	return start(ctx, temporalClient, options, workflows.DeliverWebhookName, in)
}

// startBatch starts the one workflow that carries the deliveries of a claim.
func startBatch(ctx context.Context, temporalClient client.Client, claimed []postgres.Claimed) error {
	in := workflows.BatchInput{Deliveries: len(claimed)}
	in.ClaimID = id.Claim.Format(claimed[0].ClaimID)
	options := startOptions(carrierID(claimed[0]), fmt.Sprintf("%d deliveries", in.Deliveries))
	return start(ctx, temporalClient, options, workflows.DeliverBatchName, in)
}

// startOptions has a workflow started eagerly, so that its first task comes back with the answer and runs in this process.
func startOptions(workflowID, summary string) client.StartWorkflowOptions {
	return client.StartWorkflowOptions{
		ID:                                       workflowID,
		TaskQueue:                                workflows.DeliveryTaskQueue,
		WorkflowIDReusePolicy:                    enums.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE,
		WorkflowExecutionErrorWhenAlreadyStarted: true,
		WorkflowTaskTimeout:                      workflowTaskTimeout,
		EnableEagerStart:                         true,
		StaticSummary:                            summary,
	}
}

func start(ctx context.Context, temporalClient client.Client, options client.StartWorkflowOptions, name string, in any) error {
	_, err := temporalClient.ExecuteWorkflow(ctx, options, name, in)
	var started *serviceerror.WorkflowExecutionAlreadyStarted
	if errors.As(err, &started) {
		return errStarted
	}
	return err
}

// carrierRuns asks Temporal whether the workflow that carries c is running. One that is closed or unknown
// (terminated by hand, past retention, lost with a restore) will never record anything again.
func carrierRuns(ctx context.Context, temporalClient client.Client, c postgres.Claimed) (bool, error) {
	workflowID := carrierID(c)
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
