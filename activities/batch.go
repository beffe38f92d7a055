package activities

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

const (
	// BatchBudget is how long after its start a batch sends. What it hasn't sent by then goes back into the queue, so that
	// a slow destination holds nothing up. It is well below the heartbeat timeout: when Temporal runs the batch again
	// elsewhere, because this worker was cut off, no request is begun here any more.
	BatchBudget = 2 * time.Second
	// batchConcurrency is how many requests of one batch may be in flight, divided among its destinations.
	batchConcurrency = 128
	// leastConcurrency is each destination's part at least.
	leastConcurrency = 4
	// batchBytes is how much of its payloads a batch holds in memory at a time.
	batchBytes = 16 << 20
	// heldDelay is how long a delivery waits in the queue whose destination is held.
	heldDelay = 30 * time.Second
)

// BatchInput names a batch by the claim that made it.
type BatchInput struct {
	ClaimID string
}

// BatchResult is what became of a batch.
type BatchResult struct {
	Sent     int
	Deferred int // put back into the queue without having been sent
	// Unrecorded are requests that were sent and could not be recorded in time; RecordBatch does it.
	Unrecorded []RecordInput
}

// SendBatch makes one attempt of each delivery of a batch and records each, as SendAttempt does; what isn't delivered
// goes back into the queue in the transaction that records it.
//
// Timeout: that of the slowest destination, at most 2 min, and time to record. Retried without end. It may run twice:
// what was recorded has left the claim and isn't sent again; what was in flight when the worker died is, and its leaf
// says so (lost_starts).
func (a *Activities) SendBatch(ctx context.Context, in BatchInput) (BatchResult, error) {
	started := time.Now()
	claim, err := id.Claim.Parse(in.ClaimID)
	if err != nil {
		return BatchResult{}, temporal.NewNonRetryableApplicationError("claim ID", "Input", err)
	}
	if !a.Alive() {
		return BatchResult{}, temporal.NewApplicationError("this worker's lease has lapsed", notSent)
	}
	if activity.GetInfo(ctx).Attempt > 1 {
		if err := postgres.CountAgain(ctx, a.DB, claim); err != nil {
			return BatchResult{}, err
		}
	}
	stop := heartbeat(ctx)
	defer stop()
	ctx, cancel := a.interruptible(ctx)
	defer cancel()
	budget, release := context.WithDeadline(context.Background(), started.Add(BatchBudget))
	defer release()
	b := &batch{Activities: a, claim: claim, until: started.Add(BatchBudget), over: budget.Done(), targets: map[uuid.UUID]*batchTarget{}}
	return b.run(ctx)
}

// batch is one run of SendBatch.
type batch struct {
	*Activities
	claim   uuid.UUID
	until   time.Time       // no request begins after it
	over    <-chan struct{} // is closed then
	targets map[uuid.UUID]*batchTarget
	senders sync.WaitGroup

	mu       sync.Mutex
	result   BatchResult
	deferred []postgres.Deferred
}

// batchTarget is a destination of the batch. Each has places of its own, so that a slow one takes none from others.
type batchTarget struct {
	*target
	places chan struct{}
}

// run sends payload by payload as they fit into memory, waits for the answers, and puts back what wasn't sent.
func (b *batch) run(ctx context.Context) (BatchResult, error) {
	var loadErr error
	for after := uuid.Nil; ; {
		var rows []postgres.BatchRow
		if rows, loadErr = b.load(ctx, after); loadErr != nil || len(rows) == 0 {
			break
		}
		after = rows[len(rows)-1].DeliveryID
		for _, row := range rows {
			b.senders.Go(func() { b.attempt(ctx, row) })
		}
		if b.bodies(rows) >= batchBytes {
			b.senders.Wait() // before more is read into memory
		}
	}
	b.senders.Wait()
	b.result.Deferred = len(b.deferred)
	if err := b.putBack(ctx); err != nil && len(b.result.Unrecorded) == 0 {
		return BatchResult{}, err // run again, the batch will find them
	}
	if loadErr != nil && b.result.Sent == 0 {
		return BatchResult{}, loadErr
	}
	return b.result, nil
}

func (b *batch) bodies(rows []postgres.BatchRow) (bytes int) {
	for _, row := range rows {
		bytes += len(row.Payload.Body)
	}
	return bytes
}

// load reads the next deliveries of the batch, and the destinations that it doesn't know yet.
func (b *batch) load(ctx context.Context, after uuid.UUID) ([]postgres.BatchRow, error) {
	rows, err := postgres.LoadBatch(ctx, b.DB, b.claim, after, batchBytes)
	if err != nil {
		return nil, err
	}
	var unknown []uuid.UUID
	for _, row := range rows {
		if _, known := b.targets[row.DestinationID]; !known {
			b.targets[row.DestinationID] = nil
			unknown = append(unknown, row.DestinationID)
		}
	}
	if len(unknown) == 0 {
		return rows, nil
	}
	destinations, err := postgres.LoadDestinations(ctx, b.DB, unknown)
	if err != nil {
		return nil, err
	}
	places := max(leastConcurrency, batchConcurrency/len(b.targets))
	for _, destination := range unknown {
		if destinations[destination] == nil {
			return nil, fmt.Errorf("destination %s does not exist", id.Destination.Format(destination))
		}
		to, err := newTarget(destinations[destination])
		if err != nil {
			return nil, err
		}
		b.targets[destination] = &batchTarget{target: to, places: make(chan struct{}, places)}
	}
	return rows, nil
}

// attempt sends one delivery once there is a place at its destination, and records it.
func (b *batch) attempt(ctx context.Context, row postgres.BatchRow) {
	to := b.targets[row.DestinationID]
	if to.Held {
		b.putOff(row, heldDelay)
		return
	}
	if !b.begin(ctx, to) {
		b.putOff(row, 0)
		return
	}
	outcome, response, err := b.request(ctx, to.target, sending{Delivery: row.DeliveryID, Attempt: row.Attempt, Payload: row.Payload})
	<-to.places
	if err != nil {
		b.putOff(row, heldDelay) // nothing was sent, and nothing will be until its settings are mended
		return
	}
	outcome.Park = true // of a delivery that isn't over: nobody carries it any longer
	b.record(ctx, Recording{Delivery: row.DeliveryID, Epoch: row.Epoch, Attempt: row.Attempt,
		Outcome: outcome, Response: response, Commitment: &row.Payload.Commitment})
}

// begin takes a place at the destination. It reports false if the batch's time is over, or the worker may not send.
func (b *batch) begin(ctx context.Context, to *batchTarget) bool {
	select {
	case to.places <- struct{}{}:
	case <-b.over:
		return false
	case <-ctx.Done():
		return false
	}
	if time.Now().Before(b.until) && b.Alive() {
		return true
	}
	<-to.places
	return false
}

// record records an outcome, or leaves that to the workflow.
func (b *batch) record(ctx context.Context, recording Recording) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordFor)
	defer cancel()
	_, err := b.recordInTime(ctx, recording)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.result.Sent++
	if err != nil {
		b.result.Unrecorded = append(b.result.Unrecorded, RecordInput{
			DeliveryID: id.Delivery.Format(recording.Delivery), Epoch: recording.Epoch, Attempt: recording.Attempt, Outcome: recording.Outcome,
		})
	}
}

func (b *batch) putOff(row postgres.BatchRow, delay time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.deferred = append(b.deferred, postgres.Deferred{DeliveryID: row.DeliveryID, Epoch: row.Epoch, Attempt: row.Attempt, Delay: delay})
}

// putBack gives what wasn't sent back to the queue.
func (b *batch) putBack(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordFor)
	defer cancel()
	if err := postgres.Defer(ctx, b.DB, b.deferred); err != nil {
		return err
	}
	for _, d := range b.deferred {
		b.Recorder.released(d.DeliveryID)
	}
	return nil
}

// RecordBatch records outcomes that their sender couldn't record, each as RecordAttempt does.
// Timeout 30 s, retried without end. It may run twice.
func (a *Activities) RecordBatch(ctx context.Context, in []RecordInput) error {
	for _, one := range in {
		if _, err := a.RecordAttempt(ctx, one); err != nil {
			return err
		}
	}
	return nil
}
