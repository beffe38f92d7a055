package postgres

import "github.com/google/uuid"

// The large tables are partitioned by the day in their UUIDv7 keys. A list of keys (`id = any($1)`), given as a parameter
// to a plan made for it, lets the planner leave out the partitions of other days; a join does not. So each statement that
// touches them names the keys, and joins to other values only beside that.

// eventBounds bounds the ID of a delivery's event: both carry the same timestamp. It is for a single delivery, where the
// keys of the millisecond are few.
func eventBounds(delivery uuid.UUID) (first, last uuid.UUID) {
	last = uuid.Max
	copy(first[:6], delivery[:6])
	copy(last[:6], delivery[:6])
	return first, last
}
