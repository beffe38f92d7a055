// Package audit works on a log as a whole: it checks all of it (Fsck), makes it anew from its leaves (Rebuild), completes it
// after a backup was restored (Recover), and copies it into files that anybody can serve (Export) and that a tenant can verify
// (Bundle).
//
// It believes nothing that is stored. Hashes are computed by an implementation of its own, tree, which shares neither code
// nor method with the one that seals: two that agree are worth more than one that agrees with itself.
//
// But for Recover, nothing here writes to the log that it reads, and none of it takes a lock: workers go on sealing meanwhile. What is
// looked at ends at the newest published head, because what lies beyond may be given up by a restore and was promised to
// nobody.
package audit
