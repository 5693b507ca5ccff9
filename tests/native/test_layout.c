/* The words of layout.h: what is packed comes out again, at the limits of each field and without touching its neighbours. */
#include "check.h"
#include "layout.h"

static void claims_come_out_as_they_went_in(uint32_t cells_log2)
{
    struct geometry g = {.cells = UINT64_C(1) << cells_log2, .cells_log2 = cells_log2, .length_bits = cells_log2 - 1};
    uint64_t capacity_bytes = g.cells * CELL_BYTES, longest = g.cells / 2;
    uint64_t positions[] = {0, CELL_BYTES, capacity_bytes - CELL_BYTES, capacity_bytes, POSITION_END - CELL_BYTES};
    uint64_t lengths[] = {1, 2, longest - 1, longest};
    uint32_t owners[] = {0, 1, MAX_PARTICIPANTS - 1};
    for (size_t p = 0; p < sizeof positions / sizeof *positions; p++)
        for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++)
            for (size_t o = 0; o < sizeof owners / sizeof *owners; o++) {
                uint64_t word = claim_pack(&g, positions[p], owners[o], lengths[l], CLAIM_CLAIMED);
                CHECK_EQUAL(claim_owner(word), owners[o]);
                CHECK_EQUAL(claim_cells(&g, word), lengths[l]);
                CHECK_EQUAL(claim_lap(&g, word), positions[p] / capacity_bytes);
                CHECK(claim_is_of(&g, word, positions[p]));
                CHECK(!claim_is_of(&g, word, positions[p] + capacity_bytes));
                uint64_t committed = claim_with_state(word, CLAIM_COMMITTED);
                CHECK_EQUAL(claim_state_of(committed), CLAIM_COMMITTED);
                CHECK_EQUAL(committed & ~UINT64_C(3), word & ~UINT64_C(3));
            }
}

static void slots_come_out_as_they_went_in(void)
{
    uint32_t last_pid = (1u << PID_BITS) - 1, last_generation = (1u << GENERATION_BITS) - 1;
    uint64_t last_start = (UINT64_C(1) << START_BITS) - 1;
    uint64_t word = slot_pack(SLOT_LIVE, last_generation, last_pid, last_start);
    CHECK_EQUAL(slot_state(word), SLOT_LIVE);
    CHECK_EQUAL(slot_generation(word), last_generation);
    CHECK_EQUAL(slot_pid(word), last_pid);
    CHECK_EQUAL(slot_start_low(word), last_start);
    CHECK_EQUAL(slot_generation(slot_freed(word)), 0);
    CHECK_EQUAL(slot_pid(slot_freed(word)), 0);
}

static void owners_and_records_come_out_as_they_went_in(void)
{
    uint64_t who = who_pack(MAX_PARTICIPANTS - 1, (1u << GENERATION_BITS) - 1);
    uint64_t word = owner_pack(OWNER_ORPHAN, who, MAX_GROUPS - 1, 255);
    CHECK_EQUAL(owner_state_of(word), OWNER_ORPHAN);
    CHECK_EQUAL(who_of(word), who);
    CHECK_EQUAL(who_slot(word), MAX_PARTICIPANTS - 1);
    CHECK_EQUAL(owner_group(word), MAX_GROUPS - 1);
    CHECK_EQUAL(owner_deliveries(word), 255);
    uint64_t longest = (UINT64_C(1) << RECORD_LENGTH_BITS) - 1;
    CHECK_EQUAL(record_length(record_pack(longest, 255)), longest);
    CHECK_EQUAL(record_codec(record_pack(longest, 255)), 255);
}

int main(void)
{
    for (uint32_t cells_log2 = 6; cells_log2 <= 34; cells_log2++) /* a page to a terabyte */
        claims_come_out_as_they_went_in(cells_log2);
    slots_come_out_as_they_went_in();
    owners_and_records_come_out_as_they_went_in();
    return 0;
}
