package worker

import (
	"time"

	"github.com/google/uuid"

	"github.com/kapsel-io/kapsel/postgres"
)

const (
	// markMargin is how much earlier than the last claimed delivery another one is still looked for: deliveries become
	// visible in the order of their commits, not of their due times.
	markMargin = 2 * time.Second
	// marksFor is how long marks are used. Then everything is looked at once, which is what makes it right.
	marksFor = 2 * time.Second
)

// marks remember how far each destination's queue was claimed. Until it is vacuumed, what was claimed before has left dead
// rows at the front of the queue's index, over which a claim would walk again and again.
type marks struct {
	since time.Time
	due   map[uuid.UUID]time.Time
}

// after is from when on deliveries of a destination are to be looked for.
func (m *marks) after(destination uuid.UUID) time.Time {
	if time.Since(m.since) > marksFor {
		m.since, m.due = time.Now(), map[uuid.UUID]time.Time{}
	}
	if due, known := m.due[destination]; known {
		return due.Add(-markMargin)
	}
	return time.Time{}
}

// add remembers what was claimed.
func (m *marks) add(claimed []postgres.Claimed) {
	for _, c := range claimed {
		if c.DueAt.After(m.due[c.DestinationID]) {
			m.due[c.DestinationID] = c.DueAt
		}
	}
}
