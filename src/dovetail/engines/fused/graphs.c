/* What was captured of a step, done again: its functions, one after another. */

#include <string.h>

#define WHOLE 20 /* whole numbers and addresses that a function may be told, */
#define PARTS 2  /* and float ones */
#define WORDS (1 + WHOLE + PARTS)

/* `count` calls of WORDS words each: a function, whole numbers and addresses, float numbers in the lower halves of theirs.
 *
 * By the calling convention of Linux on x86-64, where each whole number or address takes a word, each float one the lower half
 * of a register of its own, and what is told beyond what a function asks for is not looked at. */
void run(const long *words, long count) {
    typedef void (*function)(long, long, long, long, long, long, long, long, long, long, long, long, long, long, long, long, long,
                             long, long, long, double, double);
    for (const long *w = words; w < words + count * WORDS; w += WORDS) {
        double parts[PARTS];
        memcpy(parts, w + 1 + WHOLE, sizeof parts);
        ((function)w[0])(w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10], w[11], w[12], w[13], w[14], w[15], w[16],
                         w[17], w[18], w[19], w[20], parts[0], parts[1]);
    }
}
