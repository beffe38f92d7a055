package audit

import "time"

// Step makes a check read so few tiles at once, and save after each time.
func (c *FsckConfig) Step(tiles int) { c.chunkTiles, c.saveEvery = tiles, time.Nanosecond }

// HeadsPerFile is how many heads are in one file of a mirror.
const HeadsPerFile = headsPerFile

// Step makes a recovery take so many leaves at once.
func (c *RecoverConfig) Step(leaves uint64) { c.step = leaves }
