package demo

import (
	"encoding/json"
	"fmt"

	"github.com/kapsel-io/kapsel/delivery"
)

// choosyFilter is what the choosy receiver wants: whatever GitHub says was created.
const choosyFilter = `has(body.action) && body.action == "created"`

// wanted is what the filter has to say of a body, found out without it.
func wanted(body []byte) (bool, error) {
	var webhook struct {
		Action string `json:"action"`
	}
	if err := json.Unmarshal(body, &webhook); err != nil {
		return false, fmt.Errorf("read payload: %w", err)
	}
	return webhook.Action == "created", nil
}

// checkChoosy checks that the choosy receiver got what it wants and nothing else, and that of everything else it is recorded
// that it was left out.
func (r *run) checkChoosy() error {
	destination := r.endpoint.Destinations[3].ID
	got, skipped := 0, 0
	for i, event := range r.events {
		wants, err := wanted(r.sent[i].Body)
		if err != nil {
			return err
		}
		state := delivery.Skipped
		if wants {
			state = delivery.Delivered
			got++
		} else {
			skipped++
		}
		d, err := checkOne(event, destination, state, 1)
		if err != nil {
			return err
		}
		if record := d.Attempts[0]; !wants && (record.Kind != string(delivery.KindSkipped) || record.Outcome != string(delivery.ReasonFilter)) {
			return fmt.Errorf("delivery %s is skipped as %s/%s", d.ID, record.Kind, record.Outcome)
		}
		if wants != r.receivers.choosy.took(r.sent[i].Body) {
			return fmt.Errorf("event %s: wanted: %t, and it got the opposite", event.ID, wants)
		}
	}
	if deliveries, requests := r.receivers.choosy.counts(); deliveries != got || requests != got {
		return fmt.Errorf("it saw %d requests for %d deliveries, and wants %d", requests, deliveries, got)
	}
	if got == 0 || skipped == 0 {
		return fmt.Errorf("its filter divides nothing: %d are wanted, %d aren't", got, skipped)
	}
	r.say("%-8s %3d deliveries  %-9s  %3d requests", "choosy", got, delivery.Delivered, got)
	r.say("%-8s %3d deliveries  %-9s    0 requests: its filter left them out, and that is recorded", "", skipped, delivery.Skipped)
	return nil
}
