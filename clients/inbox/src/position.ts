// Where the panel stands: at the bell, on the side that was asked for or, where it does not fit, on the other one.

export type Placement = "bottom-start" | "bottom-end" | "top-start" | "top-end";

interface Box {
  readonly left: number;
  readonly top: number;
  readonly right: number;
  readonly bottom: number;
}

interface Size {
  readonly width: number;
  readonly height: number;
}

/** Between the bell and the panel. */
const GAP = 8;
/** Between the panel and the edge of the window. */
const EDGE = 8;

/** Also how high the panel may be there. */
export function position(bell: Box, panel: Size, view: Size, placement: Placement, isRtl: boolean): { left: number; top: number; room: number } {
  const below = view.height - bell.bottom - GAP - EDGE;
  const above = bell.top - GAP - EDGE;
  const isTop = placement.startsWith("top") ? panel.height <= above || above >= below : panel.height > below && above > below;
  const room = Math.max(0, isTop ? above : below);
  const height = Math.min(panel.height, room);
  const isRight = placement.endsWith("end") !== isRtl;
  const left = isRight ? bell.right - panel.width : bell.left;
  return {
    left: Math.max(EDGE, Math.min(left, view.width - panel.width - EDGE)),
    top: isTop ? bell.top - GAP - height : bell.bottom + GAP,
    room,
  };
}
