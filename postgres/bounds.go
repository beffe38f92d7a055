package postgres

import (
	"bytes"

	"github.com/google/uuid"
)

// The large tables are partitioned by the day in their UUIDv7 keys. Bounds on a key, as conditions of their own, let the
// planner leave out the partitions of other days, which it can do neither from a list nor from a join.

// bounds returns the smallest and the largest of ids.
func bounds(ids []uuid.UUID) (low, high uuid.UUID) {
	for i, u := range ids {
		if i == 0 || bytes.Compare(u[:], low[:]) < 0 {
			low = u
		}
		if i == 0 || bytes.Compare(u[:], high[:]) > 0 {
			high = u
		}
	}
	return low, high
}

// eventBounds bounds the IDs of the events of deliveries from low to high: a delivery's ID carries its event's timestamp.
func eventBounds(low, high uuid.UUID) (first, last uuid.UUID) {
	last = uuid.Max
	copy(first[:6], low[:6])
	copy(last[:6], high[:6])
	return first, last
}
