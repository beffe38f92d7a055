// Package workflows holds the workflow definitions: the waits and the decisions over time. What a workflow does to the
// world it does through package activities; what it knows about webhooks is IDs, hashes and small numbers.
//
// Every change to a workflow must replay the histories in testdata/histories (see replay_test.go); where the commands
// differ, guard the change with workflow.GetVersion.
package workflows

import (
	"fmt"

	"go.temporal.io/sdk/temporal"
)

// The task queues.
const (
	DeliveryTaskQueue    = "delivery"
	AttestationTaskQueue = "attestation"
)

// The names under which the workflows are registered: part of saved histories, never to change.
const (
	DeliverWebhookName = "DeliverWebhook"
	DeliverBatchName   = "DeliverBatch"
	AttestLogName      = "AttestLog"
	ReconcileName      = "Reconcile"
)

// DeliveryWorkflowID names the workflow that carries a delivery (a TypeID) in an epoch. It is used once: what has been
// handed over is carried under another epoch.
func DeliveryWorkflowID(delivery string, epoch int) string {
	return fmt.Sprintf("deliver/%s/%d", delivery, epoch)
}

// BatchWorkflowID names the workflow that carries the deliveries of a claim (a TypeID).
func BatchWorkflowID(claim string) string { return "batch/" + claim }

// AttestWorkflowID names the one workflow that grows a log (a TypeID).
func AttestWorkflowID(log string) string { return "attest/" + log }

// ReconcileScheduleID names the schedule that starts Reconcile, and the workflows it starts, before their time.
const ReconcileScheduleID = "reconcile"

// The search attributes, typed keyword. Values are TypeIDs; the outcome is the delivery's state at its end.
var (
	TenantAttribute      = temporal.NewSearchAttributeKeyKeyword("KapselTenant")
	EndpointAttribute    = temporal.NewSearchAttributeKeyKeyword("KapselEndpoint")
	DestinationAttribute = temporal.NewSearchAttributeKeyKeyword("KapselDestination")
	EventAttribute       = temporal.NewSearchAttributeKeyKeyword("KapselEvent")
	OutcomeAttribute     = temporal.NewSearchAttributeKeyKeyword("KapselOutcome")
)

// SearchAttributes are all of them, for registering.
func SearchAttributes() []temporal.SearchAttributeKeyKeyword {
	return []temporal.SearchAttributeKeyKeyword{
		TenantAttribute, EndpointAttribute, DestinationAttribute, EventAttribute, OutcomeAttribute,
	}
}
