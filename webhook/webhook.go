// Package webhook is what a webhook looks like on the wire, on both sides of Kapsel.
//
// Coming in: [Source] verifies who sent it, [DuplicatePolicy] finds the key by which it is recognized when it comes
// again, [EncodeHeaders] keeps its headers. Going out: [OutgoingHeaders] makes the headers, signed as Standard Webhooks
// has it, and [Client] sends the request, refuses private networks and reads a bounded part of the answer.
package webhook
