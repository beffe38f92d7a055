package activities

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/google/uuid"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"

	"github.com/kapsel-io/kapsel/delivery"
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
	// unusableDelay is how long a delivery waits in the queue of which no request can be made. One whose destination is
	// held is due at once: nobody claims it, and it goes out as soon as the destination is resumed.
	unusableDelay = 30 * time.Second
	// goneDelay is how long a delivery waits whose event's row is gone: only a restore brings that back.
	goneDelay = 15 * time.Minute
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
	span := a.beginBatch(ctx, claim, started)
	b := &batch{Activities: a, span: span, claim: claim, until: started.Add(BatchBudget), over: budget.Done(), targets: map[uuid.UUID]*batchTarget{}}
	result, err := b.run(ctx)
	span.end(a.Tracing, &result)
	return result, err
}

// batch is one run of SendBatch.
type batch struct {
	*Activities
	claim   uuid.UUID
	span    *batchSpan
	until   time.Time       // no request begins after it
	over    <-chan struct{} // is closed then
	targets map[uuid.UUID]*batchTarget
	senders sync.WaitGroup // until each delivery is recorded, or was put off
	decided sync.WaitGroup // until each delivery is being sent, or was put off

	mu       sync.Mutex
	result   BatchResult
	deferred []postgres.Deferred
}

// batchTarget is a destination of the batch. Each has places of its own, so that a slow one takes none from others.
type batchTarget struct {
	*target // nil: its settings can't be used
	places  chan struct{}
}

// run sends what there is and puts back what it didn't begin to send as soon as that is known: a run that was cut off from
// Temporal has let go of everything but its requests in flight before the next one begins. Then it waits for the answers.
func (b *batch) run(ctx context.Context) (BatchResult, error) {
	err := b.sendAll(ctx)
	b.decided.Wait()
	err = errors.Join(err, b.putBack(ctx))
	b.senders.Wait()
	err = errors.Join(err, b.putBack(ctx)) // what turned out to be unsendable
	if err != nil && len(b.result.Unrecorded) == 0 {
		return BatchResult{}, err // run again, the batch will find what is left
	}
	return b.result, nil
}

// sendAll begins to send page by page, as many as fit into memory, until the batch's time is over.
func (b *batch) sendAll(ctx context.Context) error {
	for after := uuid.Nil; ; {
		if !time.Now().Before(b.until) {
			return b.putOffRest(ctx, after)
		}
		rows, err := b.load(ctx, after)
		if err != nil && ctx.Err() != nil { // the worker stops: what isn't under way goes back
			return b.putOffRest(ctx, after)
		}
		if err != nil || len(rows) == 0 {
			return err
		}
		after = rows[len(rows)-1].DeliveryID
		b.decided.Add(len(rows))
		bytes := 0
		for _, row := range rows {
			to := b.targets[row.DestinationID] // here, because the next load may add others
			b.senders.Go(func() { b.attempt(ctx, row, to) })
			if row.Payload != nil {
				bytes += len(row.Payload.Body)
			}
		}
		if bytes >= batchBytes/2 {
			b.awaitMemory()
		}
	}
}

// awaitMemory waits until what was loaded is sent, or the batch's time is over.
func (b *batch) awaitMemory() {
	sent := make(chan struct{})
	go func() {
		b.senders.Wait()
		close(sent)
	}()
	select {
	case <-sent:
	case <-b.over:
	}
}

// putOffRest puts off what wasn't even loaded.
func (b *batch) putOffRest(ctx context.Context, after uuid.UUID) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordFor)
	defer cancel()
	rows, err := postgres.LeftOfBatch(ctx, b.DB, b.claim, after)
	for _, row := range rows {
		b.putOff(row, 0)
	}
	return err
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
			b.targets[row.DestinationID] = &batchTarget{}
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
	for _, destination := range destinations {
		b.learn(destination)
		if to, err := newTarget(destination); err == nil { // else nothing is sent there, until it is mended
			b.targets[destination.ID] = &batchTarget{target: to, places: make(chan struct{}, places)}
		}
	}
	return rows, nil
}

// attempt sends one delivery once there is a place at its destination, and records it.
func (b *batch) attempt(ctx context.Context, row postgres.BatchRow, to *batchTarget) {
	start := postgres.Start{Delivery: row.DeliveryID, Epoch: row.Epoch, Attempt: row.Attempt}
	switch {
	case row.Payload == nil:
		b.decided.Done()
		activity.GetLogger(ctx).Error("event is gone; delivery put back until it is restored", "delivery_id", id.Delivery.Format(row.DeliveryID))
		b.putOff(row, goneDelay)
		return
	case to.target == nil:
	case row.Canceled:
		b.endUnsent(ctx, row, to, canceling(start, delivery.ReasonRequested))
		return
	case to.Deleted:
		b.endUnsent(ctx, row, to, canceling(start, delivery.ReasonDestinationDeleted))
		return
	case row.Payload.Erased():
		b.endUnsent(ctx, row, to, erasing(start))
		return
	}
	permit, probe := b.mayBegin(ctx, row, to)
	if permit == nil {
		return
	}
	defer permit.Return() // whatever happens
	s := sending{Delivery: row.DeliveryID, Attempt: row.Attempt, Payload: row.Payload, Probe: probe, Carrier: b.batchCarrier(row.EventID)}
	outcome, response, err := b.request(ctx, to.target, s)
	permit.Return()
	if err == nil && outcome.verdict().Failed {
		defer func() { <-to.places }() // not before it is recorded: it may open the circuit, and then nobody follows
	} else {
		<-to.places
	}
	if err != nil {
		b.putOff(row, unusableDelay) // no request could be made of it
		return
	}
	outcome.Park = true // of a delivery that isn't over: nobody carries it any longer
	b.record(ctx, s, Recording{Delivery: row.DeliveryID, Epoch: row.Epoch, Attempt: row.Attempt,
		Outcome: outcome, Response: response, Commitment: &row.Payload.Commitment})
}

// mayBegin decides whether a delivery is sent by this batch, and returns its permit, and as which probe of a circuit it is
// sent; without a permit it was put off. The permit comes first: a probe that was won and not sent would keep others away.
func (b *batch) mayBegin(ctx context.Context, row postgres.BatchRow, to *batchTarget) (permit *Permit, probe uuid.UUID) {
	defer b.decided.Done()
	switch {
	case to.target == nil:
		b.putOff(row, unusableDelay)
		return nil, uuid.Nil
	case to.Held:
		b.putOff(row, 0)
		return nil, uuid.Nil
	case !b.begin(ctx, to):
		b.putOff(row, 0)
		return nil, uuid.Nil
	}
	if permit = b.permit(ctx, row, to); permit == nil {
		<-to.places
		b.putOff(row, noPermitDelay)
		return nil, uuid.Nil
	}
	probe, wait, err := b.passBatched(ctx, to.target)
	if err != nil || wait > 0 { // an error: the queue gives it another try
		permit.Return()
		<-to.places
		b.putOff(row, wait)
		return nil, uuid.Nil
	}
	return permit, probe
}

// permit takes a permit, as soon as there is one while the batch sends. nil: there was none.
func (b *batch) permit(ctx context.Context, row postgres.BatchRow, to *batchTarget) *Permit {
	for b.Permits.Usable(to.Limits, to.Timeout) {
		permit, ok := b.Permits.Take(Send{
			Destination: to.ID, Delivery: row.DeliveryID, Limits: to.Limits, Timeout: to.Timeout, Claimed: true})
		if ok {
			return permit
		}
		select {
		case <-b.over:
		case <-ctx.Done():
		case <-time.After(permitAgain):
		}
		if !time.Now().Before(b.until) || ctx.Err() != nil || !b.Alive() {
			break
		}
	}
	return nil
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
	if time.Now().Before(b.until) && ctx.Err() == nil && b.Alive() { // a place may have been free just when all was over
		return true
	}
	<-to.places
	return false
}

// record records an outcome, or leaves that to the workflow.
func (b *batch) record(ctx context.Context, s sending, recording Recording) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordFor)
	defer cancel()
	_, err := b.recordInTime(ctx, s, recording)
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

// putBack gives what was put off back to the queue.
func (b *batch) putBack(ctx context.Context) error {
	b.mu.Lock()
	deferred := b.deferred
	b.deferred = nil
	b.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordFor)
	defer cancel()
	if err := postgres.Defer(ctx, b.DB, deferred); err != nil {
		return err
	}
	for _, d := range deferred {
		b.Recorder.released(d.DeliveryID)
	}
	b.result.Deferred += len(deferred)
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
