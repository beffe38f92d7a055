package postgres

import "github.com/google/uuid"

// fairQueue gives out one element of each key in turn, and those of one key in the order in which they came: whoever puts in
// thousands waits for them, and all others for one of each.
type fairQueue[T any] struct {
	lines map[uuid.UUID][]T // none is empty
	turns []uuid.UUID       // the keys of lines; the first is next
	n     int
}

func (q *fairQueue[T]) push(key uuid.UUID, element T) {
	if q.lines == nil {
		q.lines = map[uuid.UUID][]T{}
	}
	if len(q.lines[key]) == 0 {
		q.turns = append(q.turns, key)
	}
	q.lines[key] = append(q.lines[key], element)
	q.n++
}

// peek returns what pop will. There must be something.
func (q *fairQueue[T]) peek() T { return q.lines[q.turns[0]][0] }

func (q *fairQueue[T]) pop() T {
	key := q.turns[0]
	line := q.lines[key]
	element := line[0]
	var none T
	line[0] = none // which is kept alive by nothing else
	q.turns, q.lines[key] = q.turns[1:], line[1:]
	if len(line) == 1 {
		delete(q.lines, key)
	} else {
		q.turns = append(q.turns, key)
	}
	q.n--
	return element
}
