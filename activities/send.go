package activities

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"

	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
)

const (
	// recordFor is how long the sender tries to record before it leaves that to RecordAttempt.
	recordFor = 5 * time.Second
	// recordAgain is the pause between two tries.
	recordAgain = 100 * time.Millisecond
	// heartbeatEvery is well below the heartbeat timeout of 8 s.
	heartbeatEvery = 2 * time.Second
	// silence is how long beyond its due time, its timeout and this a carrier may be silent: see the sweeper.
	silence = 5 * time.Minute
	// notSent marks errors of attempts that ended before any request was made.
	notSent = "NotSent"
)

// NotSent reports whether an error of SendAttempt says that no request was made.
func NotSent(err error) bool {
	var application *temporal.ApplicationError
	return errors.As(err, &application) && application.Type() == notSent
}

// SendAttempt makes one HTTP request and records what became of it, with everything that follows, in one transaction.
//
// Timeout: the destination's, at most 2 min, and time to record. Retried without end, but an error is returned only if
// nothing was sent; from then on the outcome is the result, recorded or not. It may run twice: the fence (epoch and
// attempt) lets nothing be sent for a delivery that has moved on, and a request that is repeated after a crash has the
// same attempt number and webhook-id, and is counted in lost_starts.
func (a *Activities) SendAttempt(ctx context.Context, in SendInput) (SendResult, error) {
	began := time.Now()
	deliveryID, err := id.Delivery.Parse(in.DeliveryID)
	if err != nil {
		return SendResult{}, temporal.NewNonRetryableApplicationError("delivery ID", "Input", err)
	}
	if !a.Alive() {
		return SendResult{}, temporal.NewApplicationError("this worker's lease has lapsed", notSent)
	}
	start := postgres.Start{Delivery: deliveryID, Epoch: in.Epoch, Attempt: in.Attempt}
	counted := in.Counted && activity.GetInfo(ctx).Attempt <= 1
	if !counted {
		if counted, err = postgres.CountStart(ctx, a.DB, start); err != nil {
			return SendResult{}, temporal.NewApplicationErrorWithCause("start attempt", notSent, err)
		}
	}
	out, err := a.Loader.Load(ctx, start)
	switch {
	case errors.Is(err, postgres.ErrMoved):
		return a.alreadyRecorded(ctx, deliveryID, in)
	case errors.Is(err, postgres.ErrEventGone):
		activity.GetLogger(ctx).Error("event is gone; delivery put back until it is restored", "delivery_id", in.DeliveryID)
		return SendResult{Held: true, Unused: counted, Wait: goneDelay}, nil
	case errors.Is(err, postgres.ErrDeleted):
		return a.endUnsent(ctx, &out.Destination, canceling(start, delivery.ReasonDestinationDeleted), counted)
	case errors.Is(err, postgres.ErrCanceled):
		return a.endUnsent(ctx, &out.Destination, canceling(start, delivery.ReasonRequested), counted)
	case errors.Is(err, postgres.ErrPayloadErased):
		return a.endUnsent(ctx, &out.Destination, erasing(start), counted)
	case errors.Is(err, postgres.ErrHeld):
		return SendResult{Held: true, Unused: counted}, nil
	case err != nil:
		return SendResult{}, temporal.NewApplicationErrorWithCause("start attempt", notSent, err)
	case !counted:
		return SendResult{}, temporal.NewApplicationError("destination was held a moment ago", notSent)
	}
	to, err := newTarget(&out.Destination)
	if err != nil {
		return SendResult{}, temporal.NewApplicationErrorWithCause("prepare request", notSent, err)
	}
	permit, ok := a.Permits.Take(Send{Destination: to.ID, Delivery: deliveryID, Limits: to.Limits, Timeout: to.Timeout, Claimed: in.Counted})
	if !ok {
		return SendResult{Held: true, Unused: counted, Wait: noPermitDelay}, nil
	}
	defer permit.Return() // whatever happens
	// After the permit: a probe that was won and not sent would keep others away.
	probe, wait, err := a.passLoaded(ctx, to)
	switch {
	case err != nil:
		return SendResult{}, temporal.NewApplicationErrorWithCause("ask circuit", notSent, err)
	case wait > 0:
		return SendResult{Held: true, Unused: counted, Wait: wait}, nil
	}
	stop := heartbeat(ctx)
	sendCtx, cancel := a.interruptible(ctx)
	defer cancel()
	s := sending{Delivery: deliveryID, Attempt: in.Attempt, Payload: &out.Payload, Probe: probe, Carrier: a.singleCarrier(out.EventID)}
	outcome, response, err := a.request(sendCtx, to, s)
	permit.Return()
	stop()
	if err != nil {
		return SendResult{}, temporal.NewApplicationErrorWithCause("prepare request", notSent, err)
	}
	// The request was sent: from here on its outcome must not be lost, even if the worker is being stopped.
	defer a.tellSingle(ctx, s, began)
	recordCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordFor)
	defer cancel()
	recording := Recording{Delivery: deliveryID, Epoch: in.Epoch, Attempt: in.Attempt, Outcome: outcome, Response: response, Commitment: &out.Commitment}
	progress, err := a.recordInTime(recordCtx, s, recording)
	if err != nil {
		activity.GetLogger(ctx).Warn("attempt not recorded yet", append(a.Tracing.Pairs(attemptPlace(s.Payload.EventID, deliveryID, in.Attempt)),
			"delivery_id", in.DeliveryID, "error", err)...)
		return SendResult{Unrecorded: &outcome}, nil
	}
	return SendResult{Progress: &progress}, nil
}

// recordInTime tries to record until ctx ends: what the receiver answered is known here and nowhere else.
func (a *Activities) recordInTime(ctx context.Context, s sending, recording Recording) (progress Progress, err error) {
	began := time.Now()
	defer func() { a.tellRecord(s, began, err) }()
	for {
		if progress, err = a.Recorder.Record(ctx, recording); err == nil {
			return progress, nil
		}
		select {
		case <-ctx.Done():
			return Progress{}, err
		case <-time.After(recordAgain):
		}
	}
}

// alreadyRecorded answers for a delivery that isn't where the carrier thinks: perhaps because this very attempt was
// recorded by a run of which Temporal never heard.
func (a *Activities) alreadyRecorded(ctx context.Context, deliveryID uuid.UUID, in SendInput) (SendResult, error) {
	progress, err := a.Recorder.Record(ctx, Recording{Delivery: deliveryID, Epoch: in.Epoch, Attempt: in.Attempt, LookOnly: true})
	if err != nil {
		return SendResult{}, temporal.NewApplicationErrorWithCause("look up attempt", notSent, err)
	}
	if progress.Moved && progress.State == string(delivery.Canceled) {
		return SendResult{Canceled: true, Moved: true}, nil
	}
	if progress.Moved && progress.State == string(delivery.Dead) {
		return SendResult{Dead: true, Moved: true}, nil
	}
	if progress.Moved {
		return SendResult{Moved: true}, nil
	}
	return SendResult{Progress: &progress}, nil
}

// heartbeat tells Temporal that the request is under way, until stop is called. Local activities have no heartbeat.
func heartbeat(ctx context.Context) (stop func()) {
	if activity.GetInfo(ctx).IsLocalActivity {
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		ticker := time.NewTicker(heartbeatEvery)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ctx.Done():
				return
			case <-ticker.C:
				activity.RecordHeartbeat(ctx)
			}
		}
	}()
	return func() { close(done) }
}
