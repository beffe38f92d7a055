package demo

import (
	"context"
	"fmt"

	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/delivery"
)

// redeliverRate is how many deliveries are delivered again per second at most.
const redeliverRate = 50

// redeliverDead lets the dead receiver recover, and delivers again what it missed: first counted, then done, and then there is
// nothing left to do.
func (r *run) redeliverDead(ctx context.Context) error {
	missed := int64(len(r.sent))
	r.receivers.dead.recovers()
	if err := r.dryRun(ctx, missed, 0); err != nil {
		return err
	}
	r.say("dry run   %3d deliveries would be delivered again", missed)
	job, err := r.runJob(ctx)
	if err != nil {
		return err
	}
	if job.State != "done" || job.Total != missed || job.Done != missed {
		return fmt.Errorf("the job is %s after %d of %d deliveries, not done after %d", job.State, job.Done, job.Total, missed)
	}
	r.say("job       %3d of %d done, at most %d a second", job.Done, job.Total, job.RatePerSecond)
	if err := r.awaitEvents(ctx, 0, func(int, int) {}); err != nil {
		return err
	}
	if err := r.checkRedelivered(); err != nil {
		return err
	}
	r.say("dead      %3d deliveries  %s    %3d requests: new ones, each names the dead one that it repeats", missed, delivery.Delivered, missed)
	if err := r.dryRun(ctx, 0, missed); err != nil {
		return err
	}
	r.say("dry run     0 deliveries would be delivered again: %d were before", missed)
	return nil
}

// dryRun counts what would be delivered again now, and nothing happens.
func (r *run) dryRun(ctx context.Context, would, before int64) error {
	answer, err := r.api.CreateRedeliveryJobWithResponse(ctx, nil, client.NewRedeliveryJob{
		DestinationID: &r.endpoint.Destinations[2].ID, DryRun: ptr(true),
	})
	if err != nil {
		return err
	}
	if answer.JSON200 == nil {
		return fmt.Errorf("dry run: %s", answer.Body)
	}
	want := client.RedeliveryCount{
		Total: would + before, WouldRedeliver: would, WouldSkip: client.RedeliverySkips{Redelivered: before}, Complete: true,
	}
	if *answer.JSON200 != want {
		return fmt.Errorf("the dry run counts %+v, not %+v", *answer.JSON200, want)
	}
	return nil
}

// runJob starts the job and returns it when it is over.
func (r *run) runJob(ctx context.Context) (*client.RedeliveryJob, error) {
	answer, err := r.api.CreateRedeliveryJobWithResponse(ctx, nil, client.NewRedeliveryJob{
		DestinationID: &r.endpoint.Destinations[2].ID, RatePerSecond: ptr(redeliverRate),
	})
	if err != nil {
		return nil, err
	}
	if answer.JSON202 == nil {
		return nil, fmt.Errorf("redelivery job: %s", answer.Body)
	}
	for {
		now, err := r.api.GetRedeliveryJobWithResponse(ctx, answer.JSON202.ID)
		if err != nil {
			return nil, err
		}
		if now.JSON200 == nil {
			return nil, fmt.Errorf("redelivery job: %s", now.Body)
		}
		if now.JSON200.FinishedAt != nil {
			return now.JSON200, nil
		}
		if err := pause(ctx, pollEvery); err != nil {
			return nil, err
		}
	}
}

// checkRedelivered checks that each dead delivery is as it was, and that one new delivery repeats it and was taken at once.
func (r *run) checkRedelivered() error {
	dead := r.endpoint.Destinations[2].ID
	for i, event := range r.events {
		var old, repeats []client.Delivery
		for _, d := range event.Deliveries {
			switch {
			case d.RedeliveryOf != nil:
				repeats = append(repeats, d)
			case d.DestinationID == dead:
				old = append(old, d)
			}
		}
		if len(old) != 1 || len(repeats) != 1 {
			return fmt.Errorf("event %s has %d new deliveries of %d old ones", event.ID, len(repeats), len(old))
		}
		was, is := old[0], repeats[0]
		if was.State != string(delivery.Dead) || len(was.Attempts) != deadAttempts+1 {
			return fmt.Errorf("delivery %s was changed when it was delivered again", was.ID)
		}
		if *is.RedeliveryOf != was.ID || is.DestinationID != dead || is.State != string(delivery.Delivered) || len(is.Attempts) != 1 {
			return fmt.Errorf("delivery %s is %s after %d records and repeats %s, not %s", is.ID, is.State, len(is.Attempts), *is.RedeliveryOf, was.ID)
		}
		if requests, _ := r.receivers.dead.saw(is.ID); requests != 1 || !r.receivers.dead.took(r.sent[i].Body) {
			return fmt.Errorf("the receiver saw %d requests of delivery %s", requests, is.ID)
		}
	}
	return r.checkSignatures()
}
