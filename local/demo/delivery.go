package demo

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/delivery"
)

// pollEvery is how often the API is asked.
const pollEvery = 200 * time.Millisecond

// awaitDelivery waits until every delivery of every event is over, and checks how each ended.
func (r *run) awaitDelivery(ctx context.Context) error {
	r.events = make([]client.Event, len(r.sent))
	err := r.awaitEvents(ctx, 0, func(done, total int) { r.progress(done, total, "events with every delivery at its end") })
	if err != nil {
		return err
	}
	return r.checkDelivery()
}

// awaitEvents reads the events from the given one on, again and again until all their deliveries are over.
func (r *run) awaitEvents(ctx context.Context, from int, progress func(done, total int)) error {
	total := len(r.sent) - from
	open := make([]int, total)
	for i := range open {
		open[i] = from + i
	}
	for len(open) > 0 {
		var still []int
		for _, i := range open {
			event, err := r.event(ctx, r.sent[i].eventID)
			if err != nil {
				return err
			}
			if over(event) {
				r.events[i] = *event
			} else {
				still = append(still, i)
			}
		}
		open = still
		progress(total-len(open), total)
		if err := pause(ctx, pollEvery); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) event(ctx context.Context, id string) (*client.Event, error) {
	answer, err := r.api.GetEventWithResponse(ctx, id)
	if err != nil {
		return nil, err
	}
	if answer.JSON200 == nil {
		return nil, fmt.Errorf("event %s: %s", id, answer.Body)
	}
	return answer.JSON200, nil
}

func over(event *client.Event) bool {
	for _, d := range event.Deliveries {
		if !delivery.State(d.State).Terminal() {
			return false
		}
	}
	return true
}

func (r *run) checkDelivery() error {
	for i, want := range []struct {
		name     string
		receiver *receiver
		state    delivery.State
		attempts int // HTTP requests
		records  int // and the decision to send no more, if there was one
	}{
		{"healthy", r.receivers.healthy, delivery.Delivered, 1, 1},
		{"flaky", r.receivers.flaky, delivery.Delivered, flakyFailures + 1, flakyFailures + 1},
		{"dead", r.receivers.dead, delivery.Dead, deadAttempts, deadAttempts + 1},
	} {
		destination := r.endpoint.Destinations[i].ID
		for _, event := range r.events {
			if _, err := checkOne(event, destination, want.state, want.records); err != nil {
				return fmt.Errorf("receiver %s: %w", want.name, err)
			}
		}
		deliveries, requests := want.receiver.counts()
		if deliveries != len(r.sent) || requests != want.attempts*len(r.sent) {
			return fmt.Errorf("receiver %s saw %d requests for %d deliveries", want.name, requests, deliveries)
		}
		r.say("%-8s %3d deliveries  %-9s  %3d requests", want.name, deliveries, want.state, requests)
	}
	if err := r.checkChoosy(); err != nil {
		return fmt.Errorf("receiver choosy: %w", err)
	}
	for _, s := range r.sent {
		if !r.receivers.healthy.took(s.Body) || !r.receivers.flaky.took(s.Body) {
			return fmt.Errorf("event %s did not arrive byte for byte", s.eventID)
		}
	}
	if err := r.checkSignatures(); err != nil {
		return err
	}
	r.say("Every body arrived byte for byte; GitHub's own signature still fits, and so does Kapsel's.")
	return nil
}

func (r *run) checkSignatures() error {
	for _, one := range r.receivers.each() {
		if misfits := one.misfits(); len(misfits) > 0 {
			return fmt.Errorf("receiver %s got %d requests with a signature that doesn't fit", one.url, len(misfits))
		}
	}
	return nil
}

// checkOne returns an event's delivery to a destination, if it ended so.
func checkOne(event client.Event, destination string, state delivery.State, records int) (*client.Delivery, error) {
	i := slices.IndexFunc(event.Deliveries, func(d client.Delivery) bool { return d.DestinationID == destination })
	if i < 0 {
		return nil, fmt.Errorf("event %s has no delivery to %s", event.ID, destination)
	}
	d := &event.Deliveries[i]
	if d.FilterError != nil {
		return nil, fmt.Errorf("delivery %s was made because its filter failed: %s", d.ID, *d.FilterError)
	}
	if d.State != string(state) || len(d.Attempts) != records {
		return nil, fmt.Errorf("delivery %s is %s after %d records, not %s after %d", d.ID, d.State, len(d.Attempts), state, records)
	}
	return d, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return fmt.Errorf("not done in time: %w", ctx.Err())
	case <-time.After(d):
		return nil
	}
}
