package api

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres/db"
)

// provenID names a leaf: by its attempt, or, for one that attests that an event was accepted, by the event.
type provenID struct {
	uuid.UUID
	event bool
}

func parseProven(name string) (provenID, error) {
	if event, err := id.Event.Parse(name); err == nil {
		return provenID{event, true}, nil
	}
	attempt, err := id.Attempt.Parse(name)
	if err != nil {
		return provenID{}, notFound("attempt")
	}
	return provenID{attempt, false}, nil
}

// waiting tells what isn't published yet from what isn't there, or is another tenant's.
func (p provenID) waiting(ctx context.Context, q *db.Queries) error {
	ages, err := agesOf(ctx, q, []provenID{p})
	if err != nil {
		return err
	}
	age, ok := ages[p.UUID]
	switch {
	case ok:
		return notSealedError{after: untilSealed(age)}
	case p.event:
		return &problem{kind: kindNotFound, detail: "There is no such event, or its endpoint didn't ask for its acceptance to be attested."}
	}
	return notFound("attempt")
}

// agesOf reads for how many seconds leaves have waited to be published. What isn't there, or has none, is left out.
func agesOf(ctx context.Context, q *db.Queries, proven []provenID) (map[uuid.UUID]float64, error) {
	var attempts, events []uuid.UUID
	for _, p := range proven {
		if p.event {
			events = append(events, p.UUID)
		} else {
			attempts = append(attempts, p.UUID)
		}
	}
	ages := make(map[uuid.UUID]float64, len(proven))
	if len(attempts) > 0 {
		rows, err := q.AttemptAges(ctx, attempts)
		if err != nil {
			return nil, fmt.Errorf("read attempts: %w", err)
		}
		for _, row := range rows {
			ages[row.ID] = row.Seconds
		}
	}
	if len(events) > 0 {
		rows, err := q.AcceptanceAges(ctx, events)
		if err != nil {
			return nil, fmt.Errorf("read events: %w", err)
		}
		for _, row := range rows {
			ages[row.ID] = row.Seconds
		}
	}
	return ages, nil
}
