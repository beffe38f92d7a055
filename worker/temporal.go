package worker

import (
	"context"
	"fmt"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/workflows"
)

// dial connects to Temporal, however long that takes: a worker may start before it, and outlives its outages.
func dial(ctx context.Context, options client.Options, log *zap.Logger) (client.Client, error) {
	return eventually(ctx, log, "connect to Temporal at "+options.HostPort, func() (client.Client, error) {
		return client.DialContext(ctx, options)
	})
}

// register makes the search attributes known to the namespace, and waits until a workflow with all of them is accepted:
// Temporal needs some seconds to learn them.
func register(ctx context.Context, temporalClient client.Client, namespace string, log *zap.Logger) error {
	_, err := eventually(ctx, log, "register search attributes", func() (struct{}, error) {
		return struct{}{}, registerOnce(ctx, temporalClient, namespace)
	})
	return err
}

func registerOnce(ctx context.Context, temporalClient client.Client, namespace string) error {
	known, err := temporalClient.OperatorService().ListSearchAttributes(ctx, &operatorservice.ListSearchAttributesRequest{Namespace: namespace})
	if err != nil {
		return fmt.Errorf("list search attributes: %w", err)
	}
	missing := map[string]enums.IndexedValueType{}
	for _, key := range workflows.SearchAttributes() {
		if _, ok := known.GetCustomAttributes()[key.GetName()]; !ok {
			missing[key.GetName()] = enums.INDEXED_VALUE_TYPE_KEYWORD
		}
	}
	if len(missing) > 0 {
		_, err = temporalClient.OperatorService().AddSearchAttributes(ctx,
			&operatorservice.AddSearchAttributesRequest{Namespace: namespace, SearchAttributes: missing})
		if err != nil {
			return fmt.Errorf("add search attributes: %w", err)
		}
	}
	return probe(ctx, temporalClient)
}

// probe asks for a count by each attribute, which fails while one isn't known.
func probe(ctx context.Context, temporalClient client.Client) error {
	for _, key := range workflows.SearchAttributes() {
		_, err := temporalClient.CountWorkflow(ctx, countBy(key))
		if err != nil {
			return fmt.Errorf("search by %s: %w", key.GetName(), err)
		}
	}
	return nil
}

// ensureAttestLog starts the workflow that grows a log, if it isn't running.
func ensureAttestLog(ctx context.Context, temporalClient client.Client, log db.OpenLogsRow) error {
	logID := id.Log.Format(log.ID)
	_, err := temporalClient.ExecuteWorkflow(ctx, client.StartWorkflowOptions{
		ID:                       workflows.AttestWorkflowID(logID),
		TaskQueue:                workflows.AttestationTaskQueue,
		WorkflowIDReusePolicy:    enums.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
		WorkflowIDConflictPolicy: enums.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING,
		WorkflowTaskTimeout:      workflowTaskTimeout,
		StaticSummary:            "grows " + log.Origin,
	}, workflows.AttestLogName, workflows.AttestInput{LogID: logID})
	if err != nil {
		return fmt.Errorf("start workflow of log %s: %w", logID, err)
	}
	return nil
}

// eventually repeats f until it succeeds or ctx ends.
func eventually[T any](ctx context.Context, log *zap.Logger, what string, f func() (T, error)) (T, error) {
	wait := 200 * time.Millisecond
	var failing outage
	for {
		result, err := f()
		if failing.note(log, what, err); err == nil {
			return result, nil
		}
		select {
		case <-ctx.Done():
			return result, fmt.Errorf("%s: %w", what, context.Cause(ctx))
		case <-time.After(wait):
			wait = jitter(min(2*wait, 5*time.Second))
		}
	}
}

func countBy(key temporal.SearchAttributeKeyKeyword) *workflowservice.CountWorkflowExecutionsRequest {
	return &workflowservice.CountWorkflowExecutionsRequest{Query: fmt.Sprintf("%s = 'none'", key.GetName())}
}
