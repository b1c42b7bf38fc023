// Package attention says what is computed: the problem, its numerics, and the
// contract of the devices that compute it.
package attention
